"""The torch backend, on a GPU if available."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  the usual name

if TYPE_CHECKING:
    import numpy as np


class TorchBackend:
    """Tensors on the first GPU, else in main memory. See `Backend`."""

    name = "torch"

    def __init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def free(self) -> int | None:
        """Return the free bytes of the GPU, including torch's cache; None without a GPU."""
        if self._device.type != "cuda":
            return None
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + cached

    def share(self, count: int, size: int, work: Callable[[slice], object]) -> None:  # noqa: ARG002
        """Run `work` on all items at once; torch parallelises by itself."""
        work(slice(0, count))

    def matmul(self, x: Any, w: Any) -> Any:
        """Multiply (m, k) by (k, n)."""
        return x @ w

    def array(self, values: np.ndarray) -> Any:
        """Return the values on the device; in main memory they share the array's data."""
        return torch.from_numpy(values).to(self._device)

    def numpy(self, values: Any) -> Any:
        """Return the values in main memory."""
        return values.cpu().numpy()

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Return an uninitialised float32 tensor of that shape."""
        return torch.empty(shape, dtype=torch.float32, device=self._device)

    def rows(self, table: Any, ids: np.ndarray) -> Any:
        """Return a new tensor of these rows of `table`."""
        return table[torch.from_numpy(ids).to(self._device)]

    def causal_mask(self, size: int) -> Any:
        """Return float32 (size, size): -inf above the diagonal, 0 elsewhere."""
        return torch.full((size, size), -torch.inf, device=self._device).triu(1)

    def exp_(self, values: Any) -> Any:
        """Replace `values` with their exponentials."""
        return values.exp_()

    def rsqrt_(self, values: Any) -> Any:
        """Replace `values` with the reciprocals of their square roots."""
        return values.rsqrt_()

    def mean(self, values: Any) -> Any:
        """Return the mean along the last axis."""
        return values.mean(dim=-1, keepdim=True)

    def sum(self, values: Any) -> Any:
        """Return the sum along the last axis."""
        return values.sum(dim=-1, keepdim=True)

    def amax(self, values: Any) -> Any:
        """Return the maximum along the last axis."""
        return values.amax(dim=-1, keepdim=True)

    def gelu_erf_(self, values: Any) -> Any:
        """Return the GELU of `values`."""
        return F.gelu(values)

    def gelu_tanh_(self, values: Any) -> Any:
        """Return the tanh approximation of the GELU of `values`."""
        return F.gelu(values, approximate="tanh")

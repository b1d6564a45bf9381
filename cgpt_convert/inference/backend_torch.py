"""The torch backend: on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  as everyone calls it

if TYPE_CHECKING:
    import numpy as np


class Torch:
    """Tensors on the first GPU, else in memory. See `Backend`."""

    name = "torch"

    def __init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def free(self) -> int | None:
        """Return the bytes that the GPU has free, what torch has cached included."""
        if self._device.type != "cuda":
            return None
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + cached

    def share(self, count: int, size: int, work: Callable[[slice], object]) -> None:  # noqa: ARG002
        """Do `work` for all of `count` things; torch shares it among threads itself."""
        work(slice(0, count))

    def matmul(self, x: Any, w: Any) -> Any:
        """(m, k) by (k, n)."""
        return x @ w

    def array(self, values: np.ndarray) -> Any:
        """The values on the device; in memory the tensor and the array are one."""
        return torch.from_numpy(values).to(self._device)

    def numpy(self, values: Any) -> Any:
        """The values in memory."""
        return values.cpu().numpy()

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Float32 of that shape, not set."""
        return torch.empty(shape, dtype=torch.float32, device=self._device)

    def rows(self, table: Any, ids: np.ndarray) -> Any:
        """A new tensor of these rows of `table`."""
        return table[torch.from_numpy(ids).to(self._device)]

    def causal_mask(self, size: int) -> Any:
        """Float32 (size, size): -inf above the diagonal, 0 elsewhere."""
        return torch.full((size, size), -torch.inf, device=self._device).triu(1)

    def exp_(self, values: Any) -> Any:
        """`values`, replaced by their exponentials."""
        return values.exp_()

    def rsqrt_(self, values: Any) -> Any:
        """`values`, replaced by the reciprocals of their square roots."""
        return values.rsqrt_()

    def mean(self, values: Any) -> Any:
        """The mean along the last axis."""
        return values.mean(dim=-1, keepdim=True)

    def sum(self, values: Any) -> Any:
        """The sum along the last axis."""
        return values.sum(dim=-1, keepdim=True)

    def amax(self, values: Any) -> Any:
        """The greatest value along the last axis."""
        return values.amax(dim=-1, keepdim=True)

    def gelu_erf_(self, values: Any) -> Any:
        """The GELU of `values`."""
        return F.gelu(values)

    def gelu_tanh_(self, values: Any) -> Any:
        """The tanh approximation of the GELU of `values`."""
        return F.gelu(values, approximate="tanh")

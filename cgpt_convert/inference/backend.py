"""The array-library interface of a forward pass, with NumPy's names, which torch shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from cgpt_convert.core.errors import BadRequest

if TYPE_CHECKING:
    import numpy as np

Array = Any  # a float32 numpy.ndarray or torch.Tensor


class Backend(Protocol):
    """An array library. Arrays support `@`, `+=`, slices, `reshape`, `swapaxes` and so on.

    Reductions run along the last axis, which is kept with size 1.
    """

    name: str

    def free(self) -> int | None:
        """Return the number of free bytes on a separate device; None for main memory."""

    def share(self, count: int, size: int, work: Callable[[slice], object]) -> None:
        """Run `work` on slices of `count` items, in parallel if `size` is large enough.

        `size` is the total number of multiplications.
        """

    def matmul(self, x: Array, w: Array) -> Array:
        """Multiply (m, k) by (k, n), which may be a transposed view."""

    def array(self, values: np.ndarray) -> Array:
        """Return the values on the backend's device, without a copy if they are already there."""

    def numpy(self, values: Array) -> np.ndarray:
        """Return the values as a NumPy array, without a copy if they are in main memory."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an uninitialised float32 array of that shape."""

    def rows(self, table: Array, ids: np.ndarray) -> Array:
        """Return a new array of these rows of `table`."""

    def causal_mask(self, size: int) -> Array:
        """Return float32 (size, size): -inf above the diagonal, 0 elsewhere."""

    def exp_(self, values: Array) -> Array:
        """Replace `values` with their exponentials."""

    def rsqrt_(self, values: Array) -> Array:
        """Replace `values` with the reciprocals of their square roots."""

    def mean(self, values: Array) -> Array:
        """Return the mean."""

    def sum(self, values: Array) -> Array:
        """Return the sum."""

    def amax(self, values: Array) -> Array:
        """Return the maximum."""

    def gelu_erf_(self, values: Array) -> Array:
        """Replace `values` with x * (1 + erf(x / sqrt 2)) / 2."""

    def gelu_tanh_(self, values: Array) -> Array:
        """Replace `values` with x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2."""


def backend(engine: str, threads: int = 1) -> Backend:
    """Return the backend called `engine`, numpy or torch. BadRequest if torch is not installed.

    `threads` is the number of this program's own threads for NumPy. BLAS and torch have their own
    settings.
    """
    if engine == "torch":
        try:
            from cgpt_convert.inference.backend_torch import TorchBackend
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise BadRequest(
                "the engine 'torch' needs PyTorch, which is not installed",
                hint="pip install 'cgpt-convert[torch]'",
            ) from error
        return TorchBackend()
    from cgpt_convert.inference.backend_numpy import NumpyBackend

    return NumpyBackend(threads)

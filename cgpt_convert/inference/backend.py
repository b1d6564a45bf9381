"""What a forward pass needs of an array library: NumPy's names, which torch understands too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from cgpt_convert.core.errors import BadRequest

if TYPE_CHECKING:
    import numpy as np

Array = Any  # a float32 numpy.ndarray or torch.Tensor


class Backend(Protocol):
    """An array library. Arrays have `@`, `+=`, slices, `reshape`, `swapaxes` and so on.

    Reductions go along the last axis, which stays with size 1.
    """

    name: str

    def free(self) -> int | None:
        """Return the bytes that are free on a device of its own; None for main memory."""

    def share(self, count: int, size: int, work: Callable[[slice], object]) -> None:
        """Do `work` for all of `count` things, in parts at once if its `size` is worth it.

        `size` is the number of multiplications in all.
        """

    def matmul(self, x: Array, w: Array) -> Array:
        """(m, k) by (k, n), which may be a transposed view."""

    def array(self, values: np.ndarray) -> Array:
        """The values on the backend's device, without a copy where they lie there already."""

    def numpy(self, values: Array) -> np.ndarray:
        """The values as a NumPy array, without a copy where they lie in memory already."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Float32 of that shape, not set."""

    def rows(self, table: Array, ids: np.ndarray) -> Array:
        """A new array of these rows of `table`."""

    def causal_mask(self, size: int) -> Array:
        """Float32 (size, size): -inf above the diagonal, 0 elsewhere."""

    def exp_(self, values: Array) -> Array:
        """`values`, replaced by their exponentials."""

    def rsqrt_(self, values: Array) -> Array:
        """`values`, replaced by the reciprocals of their square roots."""

    def mean(self, values: Array) -> Array:
        """The mean."""

    def sum(self, values: Array) -> Array:
        """The sum."""

    def amax(self, values: Array) -> Array:
        """The greatest value."""

    def gelu_erf_(self, values: Array) -> Array:
        """`values`, replaced by x * (1 + erf(x / sqrt 2)) / 2."""

    def gelu_tanh_(self, values: Array) -> Array:
        """`values`, replaced by x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2."""


def backend(engine: str, threads: int = 1) -> Backend:
    """The backend of that name, numpy or torch. BadRequest where torch is not installed.

    `threads` are ours, for NumPy; those of BLAS and torch are set as those libraries tell.
    """
    if engine == "torch":
        try:
            from cgpt_convert.inference.backend_torch import Torch
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise BadRequest(
                "the torch engine needs torch", hint="pip install 'cgpt-convert[torch]'"
            ) from error
        return Torch()
    from cgpt_convert.inference.backend_numpy import Numpy

    return Numpy(threads)

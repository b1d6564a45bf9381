"""The NumPy backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cgpt_convert.models import gelu

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


class Numpy:
    """Arrays in memory; products by whatever BLAS NumPy was built with. See `Backend`."""

    name = "numpy"

    def array(self, values: NDArray[Any]) -> NDArray[Any]:
        """The same array."""
        return values

    def numpy(self, values: Floats) -> Floats:
        """The same array."""
        return values

    def empty(self, shape: tuple[int, ...]) -> Floats:
        """Float32 of that shape, not set."""
        return np.empty(shape, np.float32)

    def rows(self, table: Floats, ids: NDArray[np.int64]) -> Floats:
        """A new array of these rows of `table`."""
        return table[ids]

    def causal_mask(self, size: int) -> Floats:
        """Float32 (size, size): -inf above the diagonal, 0 elsewhere."""
        return np.triu(np.full((size, size), -np.inf, np.float32), 1)

    def exp_(self, values: Floats) -> Floats:
        """`values`, replaced by their exponentials."""
        return np.exp(values, out=values)

    def rsqrt_(self, values: Floats) -> Floats:
        """`values`, replaced by the reciprocals of their square roots."""
        return np.reciprocal(np.sqrt(values, out=values), out=values)

    def mean(self, values: Floats) -> Floats:
        """The mean along the last axis."""
        total = self.sum(values)
        total /= values.shape[-1]
        return total

    def sum(self, values: Floats) -> Floats:
        """The sum along the last axis, pairwise, so that its error does not grow with the size."""
        return np.add.reduce(values, axis=-1, keepdims=True)

    def amax(self, values: Floats) -> Floats:
        """The greatest value along the last axis."""
        found: Floats = np.maximum.reduce(values, axis=-1, keepdims=True)
        return found

    def gelu_erf_(self, values: Floats) -> Floats:
        """`values`, replaced by their GELU."""
        return gelu.erf_(values)

    def gelu_tanh_(self, values: Floats) -> Floats:
        """`values`, replaced by the tanh approximation of their GELU."""
        return gelu.tanh_(values)

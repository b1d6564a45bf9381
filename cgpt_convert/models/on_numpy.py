"""The NumPy backend."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from cgpt_convert.models import gelu

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


_LARGE = 1 << 16  # multiplications: what takes less is not worth waking another thread
_ROWS = 32  # a product of so many rows for each thread is shared by rows


class Numpy:
    """Arrays in memory; products by whatever BLAS NumPy was built with. See `Backend`.

    Work is shared among `threads`, which is of use where BLAS itself takes one thread only: its
    own threads do not share what is no product, and wait for each other without rest, which costs
    several times as much as it gains where other programs want the cores.
    """

    name = "numpy"

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def share(self, count: int, size: int, work: Callable[[slice], object]) -> None:
        """Do `work` for all of `count` things, in parts at once if its `size` is worth it."""
        parts = min(self._threads, count)
        if self._pool is None or parts < 2 or size < _LARGE:  # noqa: PLR2004  two at once
            work(slice(0, count))
            return
        ends = [count * part // parts for part in range(parts + 1)]
        first, *others = map(slice, ends, ends[1:])
        waiting = [self._pool.submit(work, part) for part in others]
        work(first)
        for each in waiting:
            each.result()

    def matmul(self, x: Floats, w: NDArray[Any]) -> Floats:
        """(m, k) by (k, n)."""
        out = np.empty((len(x), w.shape[1]), np.float32)
        if len(x) >= _ROWS * self._threads:
            self.share(len(x), x.size * w.shape[1], lambda p: np.matmul(x[p], w, out=out[p]))
        else:
            columns = w.shape[1]
            self.share(columns, x.size * columns, lambda p: np.matmul(x, w[:, p], out=out[:, p]))
        return out

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
        flat = values.reshape(-1)
        self.share(len(flat), len(flat), lambda part: gelu.erf_(flat[part]))
        return values

    def gelu_tanh_(self, values: Floats) -> Floats:
        """`values`, replaced by the tanh approximation of their GELU."""
        flat = values.reshape(-1)
        self.share(len(flat), len(flat), lambda part: gelu.tanh_(flat[part]))
        return values

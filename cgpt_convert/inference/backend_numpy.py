"""The NumPy backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cgpt_convert.core.threads import ThreadPool
from cgpt_convert.inference import gelu

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

T = TypeVar("T")

_PART = 1 << 18  # multiplications or elements read; fewer are not worth a thread
_FEW = 8  # rows; up to this many, reading the weight dominates the time
_BLOCK = 1 << 18  # elements of a weight that stay in the L2 cache between rows
_ROWS = 32  # rows per thread from which a product is split by rows
_GELU = 8  # multiplications per GELU


class NumpyBackend:
    """Arrays in main memory, multiplied by NumPy's BLAS. See `Backend`.

    Work is divided among `threads`, for a BLAS limited to one thread. BLAS threads only parallelise
    products and busy-wait for each other, which costs several times their gain if other programs
    use the cores.
    """

    name = "numpy"

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._pool = ThreadPool(threads - 1)

    def free(self) -> None:
        """Return None; arrays are in main memory."""

    def share(self, count: int, size: int, work: Callable[[slice], object]) -> None:
        """Run `work` on slices of `count` items, in parallel if `size` is large enough."""
        self._shared(count, size, work)

    def _shared(self, count: int, size: int, work: Callable[[slice], T]) -> list[T]:
        """Return the results of `work` for each slice of `count` items, in order."""
        parts = min(self._threads, count, size // _PART)
        if parts < 2:  # noqa: PLR2004  at least two in parallel
            return [work(slice(0, count))]
        ends = [count * part // parts for part in range(parts + 1)]
        return self._pool.map(work, list(map(slice, ends, ends[1:])))

    def matmul(self, x: Floats, w: NDArray[Any]) -> Floats:
        """Multiply (m, k) by (k, n)."""
        rows, columns = len(x), w.shape[1]
        if rows <= _FEW and w.T.flags.c_contiguous:
            return self._few_by_columns(x, w.T)
        if rows <= _FEW and w.flags.c_contiguous:
            return self._few_by_rows(x, w)
        out = np.empty((rows, columns), np.float32)
        if rows >= _ROWS * self._threads:
            self.share(rows, x.size * columns, lambda p: np.matmul(x[p], w, out=out[p]))
        else:
            self.share(columns, x.size * columns, lambda p: np.matmul(x, w[:, p], out=out[:, p]))
        return out

    def _few_by_columns(self, x: Floats, w: NDArray[Any]) -> Floats:
        """Multiply few rows (m, k) by the transpose of (n, k), one of the n at a time.

        Reading `w` dominates the time. `np.dot` releases the GIL for results of any size,
        `np.matmul` only for those of some hundred elements.
        """
        out = np.empty((len(x), len(w)), np.float32)

        def some(part: slice) -> None:
            for block in _blocks(part, x, w):
                for row, into in zip(x, out, strict=True):
                    np.dot(w[block], row, out=into[block])

        self._shared(len(w), w.size, some)
        return out

    def _few_by_rows(self, x: Floats, w: NDArray[Any]) -> Floats:
        """Multiply few rows (m, k) by (k, n) as a sum over parts of k, each contiguous."""

        def some(part: slice) -> Floats:
            total = np.zeros((len(x), w.shape[1]), np.float32)
            for block in _blocks(part, x, w):
                for number, row in enumerate(x):
                    total[number] += np.dot(row[block], w[block])
            return total

        total, *others = self._shared(len(w), w.size, some)
        for other in others:
            total += other
        return total

    def array(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the same array."""
        return values

    def numpy(self, values: Floats) -> Floats:
        """Return the same array."""
        return values

    def empty(self, shape: tuple[int, ...]) -> Floats:
        """Return an uninitialised float32 array of that shape."""
        return np.empty(shape, np.float32)

    def rows(self, table: Floats, ids: NDArray[np.int64]) -> Floats:
        """Return a new array of these rows of `table`."""
        return table[ids]

    def causal_mask(self, size: int) -> Floats:
        """Return float32 (size, size): -inf above the diagonal, 0 elsewhere."""
        return np.triu(np.full((size, size), -np.inf, np.float32), 1)

    def exp_(self, values: Floats) -> Floats:
        """Replace `values` with their exponentials."""
        return np.exp(values, out=values)

    def rsqrt_(self, values: Floats) -> Floats:
        """Replace `values` with the reciprocals of their square roots."""
        return np.reciprocal(np.sqrt(values, out=values), out=values)

    def mean(self, values: Floats) -> Floats:
        """Return the mean along the last axis."""
        total = self.sum(values)
        total /= values.shape[-1]
        return total

    def sum(self, values: Floats) -> Floats:
        """Return the sum along the last axis, pairwise, so that the error does not grow."""
        return np.add.reduce(values, axis=-1, keepdims=True)

    def amax(self, values: Floats) -> Floats:
        """Return the maximum along the last axis."""
        maxima: Floats = np.maximum.reduce(values, axis=-1, keepdims=True)
        return maxima

    def gelu_erf_(self, values: Floats) -> Floats:
        """Replace `values` with their GELU."""
        flat = values.reshape(-1)
        self.share(len(flat), len(flat) * _GELU, lambda part: gelu.erf_(flat[part]))
        return values

    def gelu_tanh_(self, values: Floats) -> Floats:
        """Replace `values` with the tanh approximation of their GELU."""
        flat = values.reshape(-1)
        self.share(len(flat), len(flat) * _GELU, lambda part: gelu.tanh_(flat[part]))
        return values


def _blocks(part: slice, x: Floats, w: NDArray[Any]) -> Iterator[slice]:
    """Split a range of rows of `w` into blocks that stay in the cache for all rows of `x`."""
    most = max(_BLOCK // w.shape[1], 1) if len(x) > 1 else len(w)
    for start in range(part.start, part.stop, most):
        yield slice(start, min(start + most, part.stop))

"""The NumPy backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cgpt_convert.inference import gelu
from cgpt_convert.inference.thread_pool import Pool

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

T = TypeVar("T")

_PART = 1 << 18  # multiplications, and elements to read: less is not worth waking another thread
_FEW = 8  # rows: a product of so many takes the time of reading the weight, row by row
_BLOCK = 1 << 18  # elements of a weight that one row after the other finds in the L2 cache
_ROWS = 32  # a product of so many rows for each thread is shared by rows
_GELU = 8  # multiplications for an element's GELU


class Numpy:
    """Arrays in memory; products by whatever BLAS NumPy was built with. See `Backend`.

    Work is shared among `threads`, which is of use where BLAS itself takes one thread only: its
    own threads do not share what is no product, and wait for each other without rest, which costs
    several times as much as it gains where other programs want the cores.
    """

    name = "numpy"

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._pool = Pool(threads - 1)

    def free(self) -> None:
        """Arrays are in main memory."""

    def share(self, count: int, size: int, work: Callable[[slice], object]) -> None:
        """Do `work` for all of `count` things, in parts at once if its `size` is worth it."""
        self._shared(count, size, work)

    def _shared(self, count: int, size: int, work: Callable[[slice], T]) -> list[T]:
        """What `work` gives for each part of `count` things, in their order."""
        parts = min(self._threads, count, size // _PART)
        if parts < 2:  # noqa: PLR2004  two at once
            return [work(slice(0, count))]
        ends = [count * part // parts for part in range(parts + 1)]
        return self._pool.map(work, list(map(slice, ends, ends[1:])))

    def matmul(self, x: Floats, w: NDArray[Any]) -> Floats:
        """(m, k) by (k, n)."""
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
        """Few rows (m, k) by the transpose of (n, k): each of the n by itself.

        Nothing but reading `w` takes time. `np.dot` lets other threads run however small the
        result is, `np.matmul` only if it has some hundreds of elements.
        """
        out = np.empty((len(x), len(w)), np.float32)

        def some(part: slice) -> None:
            for block in _blocks(part, x, w):
                for row, into in zip(x, out, strict=True):
                    np.dot(w[block], row, out=into[block])

        self._shared(len(w), w.size, some)
        return out

    def _few_by_rows(self, x: Floats, w: NDArray[Any]) -> Floats:
        """Few rows (m, k) by (k, n): the sum over parts of k, each of which lies in one piece."""

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
        self.share(len(flat), len(flat) * _GELU, lambda part: gelu.erf_(flat[part]))
        return values

    def gelu_tanh_(self, values: Floats) -> Floats:
        """`values`, replaced by the tanh approximation of their GELU."""
        flat = values.reshape(-1)
        self.share(len(flat), len(flat) * _GELU, lambda part: gelu.tanh_(flat[part]))
        return values


def _blocks(part: slice, x: Floats, w: NDArray[Any]) -> Iterator[slice]:
    """The part of the rows of `w`, cut so that all rows of `x` can take turns at each piece."""
    most = max(_BLOCK // w.shape[1], 1) if len(x) > 1 else len(w)
    for start in range(part.start, part.stop, most):
        yield slice(start, min(start + most, part.stop))

"""Reading of strided views in row-major order with bounded memory.

The output is divided into boxes: one index of the leading dimensions, a range of the next, the rest
whole. If the dimensions already descend by stride, a box is read in its final order. If they do
not, a larger box (a panel) is read in the order of the file, and small boxes are copied out of it.
Files are not memory-mapped: mapped pages count as memory in use, and a file that shrinks while
mapped kills the process.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from cgpt_convert.sources.local import CHUNK, is_distant
from cgpt_convert.tensors import strided_copy
from cgpt_convert.tensors.shapes import c_strides, is_c_order
from cgpt_convert.tensors.strided_copy import boxes, merge, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from cgpt_convert.tensors.tensor import Storage, Tensor

    Words = NDArray[Any]  # bit patterns, one an element
    Ints = tuple[int, ...]

WORDS = {1: "|u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: "<c16"}  # by nbytes; NumPy has no <u16
GAP = 8 << 10  # gap worth reading to save a read: either takes 1 to 2 microseconds
SPAN = 1 << 20  # bytes per read that spans gaps


def elements(tensor: Tensor, max_bytes: int, run: int) -> Iterator[Words]:
    """Yield the elements of `tensor` in row-major order, uncast, as 1-D arrays.

    The arrays are words of `stored.nbytes` bytes, in the stored byte order. Elements that need no
    rearranging come `run` at a time, or as many as 256 KiB hold, if that is more. An array has at
    most `max_bytes` bytes (but at least one element), is writable, and is valid until the next is
    requested. Memory use is about 2.75 times `max_bytes`, plus 1 MiB.
    """
    if tensor.numel == 0:
        return
    shape, strides = merge(tensor.shape, tensor.strides)
    descends = list(strides) == sorted(strides, reverse=True)
    storage, length = tensor.storage, tensor.stored.size(span(shape, strides))
    if is_distant(storage.source) and not descends and length > max_bytes * 5 // 2:
        from cgpt_convert.tensors.prefetch import (
            fetched,  # panels would be fetched one by one, repeatedly
        )

        storage = fetched(storage, tensor.stored.size(tensor.start), length)
    reader = _ViewReader(storage, np.dtype(WORDS[tensor.stored.nbytes]), max_bytes, run)
    read = reader.in_order if descends else reader.permuted
    yield from read(shape, strides, tensor.start)


class _ViewReader:
    """A reader of views of one storage that reuses its buffers."""

    def __init__(self, storage: Storage, dtype: np.dtype[Any], max_bytes: int, run: int) -> None:
        self._storage, self._dtype, self._max_bytes = storage, dtype, max_bytes
        self._run = max(CHUNK, run * dtype.itemsize)
        self._buffers: dict[str, Words] = {}

    def in_order(self, shape: Ints, strides: Ints, start: int) -> Iterator[Words]:
        """Yield the elements of a view whose strides descend."""
        most = self._numel(min(self._max_bytes, self._run))
        for at, box in boxes(shape, strides, start, most):
            out = self._buffer("out", math.prod(box))
            self._fill(out.reshape(box), at, strides[len(shape) - len(box) :])
            yield out

    def permuted(self, shape: Ints, strides: Ints, start: int) -> Iterator[Words]:
        """Yield the elements of a view whose strides do not descend: read panels, cut boxes.

        Longer panels mean fewer and longer reads; boxes only need to fill cache lines.
        """
        most = self._numel(self._max_bytes // 4)
        scratch = self._buffer("tile", strided_copy.scratch_numel(self._dtype.itemsize))
        for at, box in boxes(shape, strides, start, self._numel(self._max_bytes * 5 // 2)):
            panel, steps = self._panel(at, box, strides[len(shape) - len(box) :])
            for where, part in boxes(box, steps, 0, most):
                out = self._buffer("out", math.prod(part))
                view = self._view(panel, where, part, steps[len(box) - len(part) :])
                strided_copy.transpose(out.reshape(part), view, scratch)
                yield out

    def _panel(self, start: int, shape: Ints, strides: Ints) -> tuple[Words, Ints]:
        """Return a buffer that contains a box of the storage, and the box's strides in it."""
        length = span(shape, strides)
        axes = sorted(range(len(shape)), key=lambda axis: -strides[axis])
        axes = [axis for axis in axes if strides[axis]]  # an expanded dimension is read once
        sizes, steps = tuple(shape[i] for i in axes), tuple(strides[i] for i in axes)
        if length <= self._numel(self._max_bytes * 5 // 2) and self._gaps_are_small(sizes, steps):
            panel = self._buffer("panel", length)
            self._read(start, panel)
            return panel, strides
        panel = self._buffer("panel", math.prod(sizes))
        self._fill(panel.reshape(sizes), start, steps)
        dense = dict(zip(axes, c_strides(sizes), strict=True))
        return panel, tuple(dense.get(axis, 0) for axis in range(len(shape)))

    def _fill(self, out: Words, start: int, strides: Ints) -> None:
        """Read a view whose strides descend into the contiguous array `out` of the same shape."""
        if is_c_order(out.shape, strides):
            self._read(start, out)
            return
        shape, rows = out.shape, 1
        if self._gaps_are_small(shape, strides):
            length = span(shape, strides)
            if length <= self._numel(SPAN):
                scratch = self._buffer("span", length)
                self._read(start, scratch)
                out[...] = self._view(scratch, 0, shape, strides)
                return
            inner = span(shape[1:], strides[1:])
            rows = max(1, (self._numel(SPAN) - inner) // max(strides[0], 1) + 1)
        if rows == 1 and is_c_order(shape[1:], strides[1:]):
            self._read_rows(start, strides[0], out)
        elif rows == 1:
            for i in range(shape[0]):
                self._fill(out[i], start + i * strides[0], strides[1:])
        else:
            for i in range(0, shape[0], rows):
                self._fill(out[i : i + rows], start + i * strides[0], strides)

    def _gaps_are_small(self, shape: Ints, strides: Ints) -> bool:
        """Return whether one read of the view's whole span is cheaper than one per run."""
        length = 1
        for n, stride in zip(reversed(shape), reversed(strides), strict=True):
            if n > 1 and (stride - length) * self._dtype.itemsize > GAP:
                return False
            length += (n - 1) * stride
        return True

    def _read(self, start: int, out: Words) -> None:
        self._storage.readinto(start * self._dtype.itemsize, _octets(out))

    def _read_rows(self, start: int, stride: int, out: Words) -> None:
        """Read each row of `out`, `stride` elements apart. This loop dominates slow reads."""
        octets = _octets(out)
        nbytes = len(octets) // len(out)
        offset, step = start * self._dtype.itemsize, stride * self._dtype.itemsize
        readinto = self._storage.readinto
        for done in range(0, len(octets), nbytes):
            readinto(offset, octets[done : done + nbytes])
            offset += step

    def _numel(self, nbytes: int) -> int:
        return max(nbytes // self._dtype.itemsize, 1)

    def _buffer(self, use: str, numel: int) -> Words:
        buffer = self._buffers.get(use)
        if buffer is None or len(buffer) < numel:
            buffer = self._buffers[use] = np.empty(numel, self._dtype)
        return buffer[:numel]

    def _view(self, buffer: Words, start: int, shape: Ints, strides: Ints) -> Words:
        """Return a view of `buffer`; start and strides in elements. NumPy checks the bounds."""
        size = self._dtype.itemsize
        return np.ndarray(shape, self._dtype, buffer, start * size, [size * s for s in strides])


def _octets(array: Words) -> memoryview:
    return array.reshape(-1).view(np.uint8).data

"""Tensors assembled from boxes: parts of any dimension, each with its own storage.

An assembled tensor is an ordinary view of a storage whose source combines the boxes when it is
read. A read is divided into regions such that the elements of a box in a region are one run of the
box in row-major order. So each box is read sequentially if the tensor is, for any box shapes.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from operator import add
from typing import TYPE_CHECKING

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.sources.local import CHUNK, Source, expect, is_distant, outside
from cgpt_convert.tensors.shapes import c_strides, dims
from cgpt_convert.tensors.tensor import Storage, Tensor, replace

if TYPE_CHECKING:
    from cgpt_convert.tensors.dtypes import DType

    Ints = tuple[int, ...]

_PIECE = 4 << 20  # bytes: a read of an assembled tensor, if its rows are divided among boxes
# Of boxes that are no grid: comparisons with each other for each box, and for any number of them;
# and how many boxes a hole is looked for between. They keep the time of a hostile file linear.
_COMPARISONS, _FEW, _SEARCHED = 64, 10_000, 1000


class Box:
    """A part of a larger tensor: its place, and the tensor of its elements, opened when needed.

    `label` names it in messages and provenance. `span` is the offset and size of what contains it
    in the file `source`.
    """

    __slots__ = ("_lock", "_open", "_tensor", "ends", "label", "offsets", "shape", "source", "span")

    def __init__(
        self,
        offsets: Ints,
        shape: Ints,
        label: str,
        source: Source,
        span: tuple[int, int],
        opened: Callable[[], Tensor],
    ) -> None:
        self.offsets = offsets
        self.shape = shape
        self.ends = tuple(map(add, offsets, shape))  # the indices after its last ones
        self.label = label
        self.source = source
        self.span = span
        self._open = opened
        self._tensor: Tensor | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Box {self}>"

    def __str__(self) -> str:
        return f"{self.label} ({self.place})"

    @property
    def place(self) -> str:
        """Its place in the tensor, as NumPy's slices."""
        return _slices(self.offsets, self.ends)

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def tensor(self) -> Tensor:
        """The tensor of its elements."""
        with self._lock:
            if self._tensor is None:
                self._tensor = self._open()
            return self._tensor

    def over(self, tensor: Tensor) -> Box:
        """Return the same box with its elements in `tensor`."""
        return Box(self.offsets, self.shape, self.label, self.source, self.span, lambda: tensor)


def _slices(starts: Ints, ends: Ints) -> str:
    pairs = zip(starts, ends, strict=True)
    return f"[{', '.join(f'{start}:{end}' for start, end in pairs)}]"


def assembled(name: str, dtype: DType, shape: Ints, boxes: Sequence[Box], where: str) -> Tensor:
    """Return the tensor that the boxes make up; boxes without elements are skipped.

    `where` names the checkpoint. Raises Malformed, naming the boxes, if they overlap, leave a hole
    or reach outside the tensor, Unsupported if there are too many to compare them.
    """
    boxes = [box for box in boxes if box.numel]
    place = f"{where}[{name}]"
    check_places(boxes, shape, place)
    covered = sum(box.numel for box in boxes)
    if covered != math.prod(shape):
        message = f"the chunks have {covered:,} of {math.prod(shape):,} elements"
        if len(boxes) <= _SEARCHED:
            message += f"; none has {_slices(*_hole(boxes, shape))}"
        raise Malformed(message, where=place)
    source = AssembledSource(where, dtype, shape, boxes)
    storage = Storage(source, 0, source.nbytes, name)
    return Tensor(name, dtype, shape, c_strides(shape), 0, storage)


def boxes_of(storage: Storage) -> Sequence[Box]:
    """Return the boxes that the storage is assembled from; none for other storages."""
    source = storage.source
    return source.boxes if isinstance(source, AssembledSource) else ()


def with_boxes(tensor: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Return the same view of an assembled tensor, with these boxes in place of its own."""
    source = tensor.storage.source
    if not isinstance(source, AssembledSource):
        raise TypeError(f"{tensor!r} is not assembled")
    source = AssembledSource(source.name, source.dtype, source.shape, boxes)
    return replace(tensor, storage=replace(tensor.storage, source=source))


def check_places(boxes: Sequence[Box], shape: Ints, where: str) -> None:
    """Raise Malformed, naming them, for boxes that overlap or are outside a tensor of that shape.

    `where` names the tensor. Raises Unsupported if there are too many to compare them.
    """
    for box in boxes:
        fits = len(box.offsets) == len(box.shape) == len(shape) and min(box.offsets, default=0) >= 0
        if not fits or any(end > size for end, size in zip(box.ends, shape, strict=True)):
            message = f"the chunk {box} is outside the shape {dims(shape)}"
            raise Malformed(message, where=where)
    if len(boxes) > 1 and not _is_grid(boxes, shape):
        _check_apart(boxes, where)


def _is_grid(boxes: Sequence[Box], shape: Ints) -> bool:
    """Return whether the boxes are all cells between cuts through the tensor, as of a mesh."""
    cells = 1
    for axis, size in enumerate(shape):
        starts = sorted({box.offsets[axis] for box in boxes})
        ends = dict(zip(starts, [*starts[1:], size], strict=True))
        if starts[0] or any(box.ends[axis] != ends[box.offsets[axis]] for box in boxes):
            return False
        cells *= len(starts)
    return cells == len(boxes) == len({box.offsets for box in boxes})


def _check_apart(boxes: Sequence[Box], where: str) -> None:
    rank = len(boxes[0].offsets)
    axis = max(range(rank), key=lambda axis: len({b.offsets[axis] for b in boxes}), default=0)
    if not rank:
        message = f"two chunks have the same scalar: {boxes[0]} and {boxes[1]}"
        raise Malformed(message, where=where)
    left = _COMPARISONS * len(boxes) + _FEW
    open_boxes: list[Box] = []  # those that reach the current index of the axis
    for box in sorted(boxes, key=lambda box: box.offsets[axis]):
        start = box.offsets[axis]
        open_boxes = [other for other in open_boxes if other.ends[axis] > start]
        left -= len(open_boxes)
        if left < 0:
            message = f"the tensor has {len(boxes):,} chunks, too many to compare"
            raise Unsupported(message, where=where)
        for other in open_boxes:
            if _overlap(box, other):
                raise Malformed(f"two chunks overlap: {other} and {box}", where=where)
        open_boxes.append(box)


def _overlap(one: Box, other: Box) -> bool:
    sides = zip(one.offsets, one.ends, other.offsets, other.ends, strict=True)
    return all(start < end and begin < stop for start, stop, begin, end in sides)


def _hole(boxes: Sequence[Box], shape: Ints) -> tuple[Ints, Ints]:
    """Return start and end of a region that no box has; the boxes must not overlap.

    Along each dimension, the boxes' ends divide the region into slabs. The first slab that is not
    full has a hole.
    """
    starts: list[int] = []
    ends: list[int] = []
    for axis, size in enumerate(shape):
        cuts = sorted({0, size, *(b.offsets[axis] for b in boxes), *(b.ends[axis] for b in boxes)})
        rest = math.prod(shape[axis + 1 :])
        for start, end in pairwise(cuts):
            inside = [b for b in boxes if b.offsets[axis] <= start and end <= b.ends[axis]]
            if sum(math.prod(b.shape[axis + 1 :]) for b in inside) < rest:
                break
        starts.append(start)
        ends.append(end)
        boxes = inside
        if not boxes:
            break
    whole = shape[len(starts) :]
    return (*starts, *(0 for _ in whole)), (*ends, *whole)


class AssembledSource:
    """The row-major, little-endian bytes of a tensor that is assembled from boxes."""

    def __init__(self, name: str, dtype: DType, shape: Ints, boxes: Sequence[Box]) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.nbytes = dtype.size(math.prod(shape))
        files = {id(box.source): box.source for box in boxes}
        self.within = tuple(files.values())
        self.distant = any(map(is_distant, self.within))
        # without the inner dimensions that no box divides, and in the order of their first index
        cut = _divided(shape, boxes)
        self._shape = _joined(shape, cut)
        self.boxes = sorted(boxes, key=lambda box: box.offsets)
        inner = math.prod(shape[cut:])
        self._placed = [
            ((*box.offsets[: cut - 1], box.offsets[cut - 1] * inner), _joined(box.shape, cut), box)
            if cut
            else ((0,), self._shape, box)
            for box in self.boxes
        ]
        self._starts = [offsets[0] for offsets, _, _ in self._placed]
        self._reach = list(accumulate((at[0] + size[0] for at, size, _ in self._placed), max))
        runs = min((size[-1] for _, size, _ in self._placed), default=0) * dtype.nbytes
        self.piece = _PIECE if len(self._shape) > 1 and runs < CHUNK else CHUNK

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`, which may be inside an element."""
        if offset < 0 or offset + len(buffer) > self.nbytes:
            raise outside(self.name, self.nbytes, offset, len(buffer))
        width = self.dtype.nbytes
        done = 0
        while done < len(buffer):
            first, skipped = divmod(offset + done, width)
            size = min(len(buffer) - done, _PIECE)
            whole = 0 if skipped else size // width * width
            if whole:
                self._read(first, buffer[done : done + whole])
                done += whole
                continue
            element = memoryview(bytearray(width))
            self._read(first, element)
            part = element[skipped : skipped + size]
            buffer[done : done + len(part)] = part
            done += len(part)

    def _read(self, first: int, out: memoryview) -> None:
        """Fill `out` with whole elements from number `first` on."""
        width, start = self.dtype.nbytes, 0
        for lows, sizes in regions(self._shape, first, len(out) // width):
            nbytes = math.prod(sizes) * width
            self._read_region(lows, sizes, out[start : start + nbytes])
            start += nbytes

    def _read_region(self, lows: Ints, sizes: Ints, out: memoryview) -> None:
        """Fill `out` with a region: one index, then a range, then whole dimensions."""
        width = self.dtype.nbytes
        least = bisect_right(self._reach, lows[0])
        most = bisect_left(self._starts, lows[0] + sizes[0])
        for offsets, shape, box in self._placed[least:most]:
            start = tuple(map(max, offsets, lows))
            ends = [
                min(at + size, low + length)
                for at, size, low, length in zip(offsets, shape, lows, sizes, strict=True)
            ]
            part = tuple(end - begin for begin, end in zip(start, ends, strict=True))
            if min(part) <= 0:
                continue
            first = _position(start, offsets, shape)
            if part[1:] == sizes[1:]:  # all of the region's rows
                at = _position(start, lows, sizes) * width
                read_run(box.tensor, first, out[at : at + math.prod(part) * width])
                continue
            import numpy as np

            near = np.empty(math.prod(part) * width, np.uint8)
            read_run(box.tensor, first, near.data)
            rows = np.frombuffer(out, np.uint8).reshape(*sizes[:-1], -1)
            where = tuple(
                slice(begin - low, begin - low + length)
                for begin, low, length in zip(start, lows, part, strict=True)
            )
            last = slice(where[-1].start * width, where[-1].stop * width)
            rows[(*where[:-1], last)] = near.reshape(*part[:-1], -1)

    def expect(self, ranges: list[tuple[int, int]]) -> None:
        """Announce reads to the sources of the boxes, in the order of the boxes."""
        reads = []
        for offset, nbytes in ranges:
            if (offset, nbytes) != (0, self.nbytes):
                continue  # parts of a tensor are read as they come
            reads += [(box.source, *box.span) for box in self.boxes]
        expect(reads)

    def check_unchanged(self) -> None:
        """Check the files of the boxes."""
        for source in self.within:
            source.check_unchanged()


def _divided(shape: Ints, boxes: Sequence[Box]) -> int:
    """Return the number of leading dimensions of which the last is divided; 0 if none is."""
    for cut in range(len(shape), 0, -1):
        if any(box.shape[cut - 1] != shape[cut - 1] for box in boxes):
            return cut
    return 0


def _joined(shape: Ints, cut: int) -> Ints:
    """Return the shape with dimension `cut` - 1 and those after it as one."""
    return (*shape[: max(cut - 1, 0)], math.prod(shape[max(cut - 1, 0) :]))


def _position(index: Ints, start: Ints, shape: Ints) -> int:
    """Return the row-major position of `index` in a region of that start and shape."""
    steps = zip(index, start, c_strides(shape), strict=True)
    return sum((at - low) * stride for at, low, stride in steps)


def regions(shape: Ints, first: int, count: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield start and sizes of regions that together are `count` consecutive elements.

    A region has one index of the leading dimensions, a range of the next, and the rest whole.
    `shape` has at least one dimension.
    """
    strides = c_strides(shape)
    while count:
        rest, index = first, []
        for stride in strides:
            at, rest = divmod(rest, stride)
            index.append(at)
        # the outermost dimension of which whole indices begin here and fit; the last always does
        axis = 0
        while strides[axis] > count or any(index[axis + 1 :]):
            axis += 1
        length = min(shape[axis] - index[axis], count // strides[axis])
        yield tuple(index), (*(1 for _ in range(axis)), length, *shape[axis + 1 :])
        first += length * strides[axis]
        count -= length * strides[axis]


def read_run(tensor: Tensor, first: int, buffer: memoryview) -> None:
    """Fill `buffer` with the elements of `tensor` from number `first` on, in row-major order."""
    extent = tensor.extent()
    if extent is not None:
        extent.storage.readinto(extent.start + first * tensor.dtype.nbytes, buffer)
        return
    done, width = 0, tensor.dtype.nbytes
    if not tensor.shape:
        tensor = replace(tensor, shape=(1,), strides=(1,))
    for lows, sizes in regions(tensor.shape, first, len(buffer) // width):
        where = tuple(slice(low, low + size) for low, size in zip(lows, sizes, strict=True))
        for block in tensor[where].blocks(_PIECE):
            buffer[done : done + len(block)] = block
            done += len(block)

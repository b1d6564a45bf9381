"""Operations on strided views: merging dimensions, dividing into boxes, copying in tiles.

Shapes, strides and starts count elements. Strides are never negative.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Words = NDArray[Any]
    Ints = tuple[int, ...]

TILE = 256 << 10  # bytes copied at once: source, copy and result together fit the L2 cache
LINE = 16  # elements: tiles start at multiples of it, so that few cache lines are read twice
LINES = 512  # cache lines that stay in a first-level cache of 32 KiB
RUN = 64  # elements: a tile with runs of at least this length is copied before it is turned


def merge(shape: Ints, strides: Ints) -> tuple[Ints, Ints]:
    """Return the same elements in the same order in the fewest dimensions, none of size 1."""
    merged: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            size *= merged.pop()[0]  # noqa: PLW2901  the dimension now stands for both
        merged.append((size, stride))
    return tuple(size for size, _ in merged), tuple(stride for _, stride in merged)


def boxes(shape: Ints, strides: Ints, start: int, most: int) -> Iterator[tuple[int, Ints]]:
    """Yield start and shape of boxes of at most `most` elements that cover a view in order.

    The strides of a box are the last ones of `strides`, one per dimension of the box.
    """
    if math.prod(shape) <= most:
        yield start, shape
        return
    inner = math.prod(shape[1:])
    if inner > most:
        for i in range(shape[0]):
            yield from boxes(shape[1:], strides[1:], start + i * strides[0], most)
        return
    step = most // inner
    for i in range(0, shape[0], step):
        yield start + i * strides[0], (min(step, shape[0] - i), *shape[1:])


def span(shape: Ints, strides: Ints) -> int:
    """Return the number of elements from the first to the last of a view, inclusive."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def scratch_numel(itemsize: int) -> int:
    """Return the scratch size for `transpose`: one tile with rows padded by LINE elements."""
    return TILE // itemsize * (RUN + LINE) // RUN


def transpose(out: Words, view: Words, scratch: Words) -> None:
    """Copy `view` to `out`, of the same shape, in tiles if the order of their dimensions differs.

    NumPy's own copy follows the rows of `out`. A cache line of `view` is needed again when the
    index of its fastest dimension advances; if too many other lines were touched meanwhile, it has
    been evicted.
    """
    moving = [axis for axis in range(view.ndim) if view.strides[axis]]
    fastest = min(moving, key=lambda axis: view.strides[axis], default=-1)
    if math.prod(view.shape[fastest + 1 :]) <= LINES:
        out[...] = view
    else:
        _copy_tiles(out, view, scratch)


def _copy_tiles(out: Words, view: Words, scratch: Words) -> None:
    """Copy in nearly square tiles, made by halving the longest side recursively."""
    if out.nbytes <= TILE:
        _turn(out, view, scratch)
        return
    axis = out.shape.index(max(out.shape))
    half = out.shape[axis] // 2
    if half > LINE:
        half += -half % LINE
    for part in (slice(None, half), slice(half, None)):
        tile = (slice(None),) * axis + (part,)
        _copy_tiles(out[tile], view[tile], scratch)


def _turn(out: Words, view: Words, scratch: Words) -> None:
    """Copy a tile along its rows in `view`, then, within the cache, along the rows of `out`.

    The first copy reads memory sequentially, which the processor prefetches. Its rows are padded by
    one line, because rows of a power of two would share a few sets of the cache.
    """
    order = sorted(range(view.ndim), key=lambda axis: -view.strides[axis])
    rows = view.transpose(order)
    *outer, run = rows.shape
    if run < RUN or not view.strides[order[-1]]:
        out[...] = view
        return
    pitch = run + LINE
    near = scratch[: math.prod(outer) * pitch].reshape(*outer, pitch)[..., :run]
    near[...] = rows
    out.transpose(order)[...] = near

"""Calculations on shapes and strides, counted in elements."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from operator import index as as_integer
from operator import mul
from typing import Any

from cgpt_convert.core.errors import BadRequest
from cgpt_convert.tensors.dtypes import DType


def in_blocks(dtype: DType, shape: tuple[int, ...]) -> bool:
    """Return whether rows of this shape are whole blocks of the type."""
    return dtype.block == 1 or bool(shape and shape[-1] % dtype.block == 0)


def dims(shape: Iterable[int], by: str = "x") -> str:
    """Format a shape or strides for display: 768x2304."""
    return by.join(map(str, shape)) or "scalar"


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return row-major strides, in elements."""
    sizes = shape[:0:-1]  # all but the first, in reverse
    if 0 in sizes:
        sizes = tuple([size or 1 for size in sizes])
    return tuple(accumulate(sizes, mul, initial=1))[::-1] if shape else ()


def is_c_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether the layout is row-major without gaps, ignoring dimensions of size 0 or 1."""
    if 0 in shape:
        return True
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def sliced(
    index: object, start: int, shape: tuple[int, ...], strides: tuple[int, ...], where: str = ""
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return start, shape and strides of the view that NumPy's basic indexing gives.

    An index is an integer, a slice, `...`, or a tuple of these. Raises IndexError and TypeError as
    NumPy does, and BadRequest for a negative step.
    """
    items = index if isinstance(index, tuple) else (index,)
    dots = sum(item is Ellipsis for item in items)
    used = len(items) - dots
    if dots > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if used > len(shape):
        raise IndexError(f"too many indices: {used} for a tensor of {len(shape)} dimensions")
    if not dots:
        items = (*items, Ellipsis)
    sizes: list[int] = []
    steps: list[int] = []
    axis = 0
    for item in items:
        if item is Ellipsis:
            end = axis + len(shape) - used
            sizes += shape[axis:end]
            steps += strides[axis:end]
            axis = end
            continue
        size, stride = shape[axis], strides[axis]
        axis += 1
        if isinstance(item, slice):
            chosen = range(*item.indices(size))
            if chosen.step < 0:
                message = f"slices with a negative step ({chosen.step}) are not supported"
                raise BadRequest(message, where=where, hint="slice the array: .numpy()[...]")
            start += chosen.start * stride if chosen else 0
            sizes.append(len(chosen))
            steps.append(stride * chosen.step)
        else:
            start += _position(item, size) * stride
    return start, tuple(sizes), tuple(steps)


def _position(item: Any, size: int) -> int:
    """Return the integer index as a position, counted from the front."""
    if isinstance(item, bool):
        raise TypeError("tensor indices must be integers or slices, not masks")
    position: int = as_integer(item)
    if not -size <= position < size:
        raise IndexError(f"index {position} is out of bounds for a dimension of size {size}")
    return position % size

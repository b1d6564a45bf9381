"""Calculations on shapes and strides, counted in elements."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from operator import mul

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

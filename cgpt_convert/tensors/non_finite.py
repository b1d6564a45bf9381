"""Counts of NaN and infinite elements in the data of a tensor as it is streamed.

An element is not finite if all bits of its exponent are set. Each piece is tested first: if NumPy
is imported, with the largest element as a signed and as an unsigned integer; else with the highest
byte of each element and, where one of these may belong to a NaN or an infinity, with an addition of
long integers. Elements are counted only in pieces with a match.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cgpt_convert.tensors.dtypes import DType


@dataclass(slots=True)
class NonFiniteCounts:
    """Numbers of NaN and infinite elements; each part of a complex number is counted."""

    nan: int = 0
    infinite: int = 0


class _Layout(NamedTuple):
    width: int  # bytes of an element
    exponent: int  # its bits, all set; the bit above is the sign
    has_infinity: bool = True


_LAYOUTS = {
    "float64": _Layout(8, 0x7FF0_0000_0000_0000),
    "float32": _Layout(4, 0x7F80_0000),
    "float16": _Layout(2, 0x7C00),
    "bfloat16": _Layout(2, 0x7F80),
    "float8_e5m2": _Layout(1, 0x7C),
    "float8_e4m3fn": _Layout(1, 0x7F, has_infinity=False),
    "complex128": _Layout(8, 0x7FF0_0000_0000_0000),
    "complex64": _Layout(4, 0x7F80_0000),
    "complex32": _Layout(2, 0x7C00),
}


def may_have(dtype: DType) -> bool:
    """Return whether elements of the type can be NaN and are counted."""
    return dtype.name in _LAYOUTS


def watched(
    pieces: Iterable[memoryview], dtype: DType, counts: NonFiniteCounts
) -> Iterator[memoryview]:
    """Yield the little-endian pieces of a tensor of type `dtype`, counting into `counts`."""
    layout = _LAYOUTS[dtype.name]
    rest = b""  # the start of an element that continues in the next piece
    for piece in pieces:
        data = memoryview(rest + piece) if rest else piece
        whole = len(data) - len(data) % layout.width
        if whole and any_non_finite(data[:whole], layout):
            _count(data[:whole], layout, counts)
        rest = bytes(data[whole:])
        yield piece


def any_non_finite(data: memoryview, layout: _Layout) -> bool:
    """Return whether any element is NaN or infinite."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "frombuffer"):  # another thread is importing it
        return any_by_bytes(data, layout)
    signed = numpy.frombuffer(data, f"<i{layout.width}").max()
    return bool(
        signed >= layout.exponent
        or numpy.frombuffer(data, f"<u{layout.width}").max() >= layout.exponent | _sign(layout)
    )


def _sign(layout: _Layout) -> int:
    return 1 << (8 * layout.width - 1)


def any_by_bytes(data: memoryview, layout: _Layout) -> bool:
    """Return the same without NumPy.

    The highest bytes first: those of weights hardly ever have all these bits set.
    """
    whole = data.obj  # slicing a bytearray takes a tenth of the time of slicing a view
    if not isinstance(whole, bytearray) or len(whole) != len(data):
        whole = bytes(data)
    highest = whole[layout.width - 1 :: layout.width]
    return any(byte in highest for byte in _highest(layout)) and _any_of_integer(data, layout)


@functools.lru_cache(16)
def _highest(layout: _Layout) -> tuple[int, ...]:
    """Return the highest bytes that an element which is not finite may have."""
    bits = layout.exponent >> (8 * layout.width - 8)
    return tuple(byte for byte in range(256) if byte & bits == bits)


def _any_of_integer(data: memoryview, layout: _Layout) -> bool:
    """Test with one addition: it carries into the sign bit only if all exponent bits are set."""
    values, step, signs = _constants(layout.width, layout.exponent, len(data) // layout.width)
    return bool((int.from_bytes(data, "little") & values) + step & signs)


@functools.lru_cache(64)
def _constants(width: int, exponent: int, count: int) -> tuple[int, int, int]:
    sign = 1 << (8 * width - 1)
    each = (sign - 1, sign - exponent, sign)
    values, step, signs = (
        int.from_bytes(number.to_bytes(width, "little") * count, "little") for number in each
    )
    return values, step, signs


def _count(data: memoryview, layout: _Layout, counts: NonFiniteCounts) -> None:
    import numpy as np

    values: Any = np.frombuffer(data, f"<u{layout.width}") & (_sign(layout) - 1)
    not_finite = int(np.count_nonzero(values >= layout.exponent))
    infinite = int(np.count_nonzero(values == layout.exponent)) if layout.has_infinity else 0
    counts.infinite += infinite
    counts.nan += not_finite - infinite

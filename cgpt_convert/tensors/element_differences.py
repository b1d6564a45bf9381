"""Elementwise comparison of two tensors of the same shape, in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cgpt_convert.tensors.dtypes import FLOAT32

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from cgpt_convert.tensors.tensor import Tensor

    Array = NDArray[Any]

MOST = 4 << 20  # bytes of either tensor at a time


@dataclass(slots=True)
class BitDifferences:
    """The number of units with different bits, of `units`, and the first one in row-major order.

    A unit is an element, or a block for block-quantized types.
    """

    units: int = 0
    differing: int = 0
    first: int | None = None


@dataclass(slots=True)
class ValueDifferences:
    """Differences between the values of two tensors; NaNs and infinities that agree are skipped."""

    numel: int = 0
    differing: int = 0  # values; a NaN equals a NaN, -0.0 equals 0.0
    most: float = 0.0  # the greatest |difference|; NaN where only one is a number
    squares: float = 0.0  # of the differences
    dot: float = 0.0
    left: float = 0.0  # sum of squares of each
    right: float = 0.0

    @property
    def rms(self) -> float:
        """The root mean square of the differences."""
        return math.sqrt(self.squares / self.numel) if self.numel else 0.0

    @property
    def cosine(self) -> float | None:
        """The cosine similarity of the tensors; None if one is zero or not finite."""
        product = math.sqrt(self.left) * math.sqrt(self.right)
        if not product or not math.isfinite(product) or not math.isfinite(self.dot):
            return None
        return max(-1.0, min(1.0, self.dot / product))


def bits(one: Tensor, other: Tensor, max_bytes: int = MOST) -> BitDifferences:
    """Compare two tensors of the same type and shape bit by bit, including NaNs."""
    differences = BitDifferences()
    unit = f"V{one.dtype.nbytes}"
    for a, b in _together(_arrays(one, unit, max_bytes), _arrays(other, unit, max_bytes)):
        if not np.array_equal(a.view("|u1"), b.view("|u1")):
            rows = a.view("|u1").reshape(len(a), -1) != b.view("|u1").reshape(len(b), -1)
            where = np.flatnonzero(rows.any(axis=1))
            differences.differing += len(where)
            if differences.first is None:
                differences.first = differences.units + int(where[0])
        differences.units += len(a)
    return differences


def values(one: Tensor, other: Tensor, max_bytes: int = MOST) -> ValueDifferences | None:
    """Compare values in double precision; None for types that do not represent numbers.

    For complex numbers, the absolute values of the differences are used.
    """
    one, other = _wide(one), _wide(other)
    if not (one.dtype.numpy and other.dtype.numpy):
        return None
    differences = ValueDifferences()
    pairs = _together(
        _arrays(one, one.dtype.numpy, max_bytes), _arrays(other, other.dtype.numpy, max_bytes)
    )
    with np.errstate(all="ignore"):
        for a, b in pairs:
            _add(differences, a, b)
    return differences


def _add(differences: ValueDifferences, a: Array, b: Array) -> None:
    differences.numel += len(a)
    kind = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    differ = a != b
    wide_a, wide_b = a.astype(kind), b.astype(kind)
    differ &= ~(np.isnan(wide_a) & np.isnan(wide_b))
    differences.differing += int(np.count_nonzero(differ))
    if differ.any():
        apart = np.absolute(wide_a[differ] - wide_b[differ])
        differences.most = float(np.maximum(differences.most, apart.max()))  # a NaN is kept
        differences.squares += float(np.dot(apart, apart))
    if kind is np.float64:
        usable = np.isfinite(wide_a) & np.isfinite(wide_b)
        if not usable.all():
            wide_a, wide_b = wide_a[usable], wide_b[usable]
        differences.dot += float(np.dot(wide_a, wide_b))
        differences.left += float(np.dot(wide_a, wide_a))
        differences.right += float(np.dot(wide_b, wide_b))


def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor as float32 if NumPy does not have its type but it represents numbers."""
    if tensor.dtype.casts and not tensor.dtype.numpy:
        return tensor.cast(FLOAT32)
    return tensor


def _arrays(tensor: Tensor, dtype: str, max_bytes: int) -> Iterator[Array]:
    return (np.frombuffer(block, dtype) for block in tensor.blocks(max_bytes))


def _together(one: Iterator[Array], other: Iterator[Array]) -> Iterator[tuple[Array, Array]]:
    """Yield both sequences in pieces of equal length, however they are divided."""
    empty = np.empty(0, "|u1")
    a, b = empty, empty
    while True:
        # a piece is valid until the next is requested, so use it up first
        a = a if len(a) else next(one, empty)
        b = b if len(b) else next(other, empty)
        n = min(len(a), len(b))
        if n == 0:
            return
        yield a[:n], b[:n]
        a, b = a[n:], b[n:]

"""Quantization of float32 to ggml's block types, bit-identical to ggml's reference routines.

A block is 32 consecutive elements of a row: one or two float16 numbers, then 32 small integers. The
reference is `quantize_row_q8_0_ref` and its siblings in ggml/src/ggml-quants.c. NumPy reduces rows
of 32 slowly, so extremes are found by halving, and each step processes a whole chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.tensors.cast import Cast
from cgpt_convert.tensors.dtypes import FLOAT32, NIBBLE, OCTET, DType, block_codec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cgpt_convert.tensors.read import CastCounts

    Words = NDArray[Any]
    Floats = NDArray[np.float32]
    Octets = NDArray[np.uint8]

BLOCK = 32  # ggml-common.h QK8_0, QK5_1 and so on

# The sum of this number and a float32 of at most 2^21 in magnitude has that float32, rounded to an
# integer, in the low bits of its mantissa (1.5 * 2^23: negative numbers in two's complement).
_ROUND = np.float32(3 << 22)
_INFINITY = 0x7C00  # float16's


class Quantizer:
    """Quantizes up to `most` elements (whole blocks) at a time to the type `target`.

    `counts` collects losses: elements of blocks whose scale became infinite or zero as float16;
    None skips counting. `name` is the tensor's name, for errors.
    """

    def __init__(
        self, stored: DType, target: DType, most: int, counts: CastCounts | None, name: str
    ) -> None:
        self._widen = Cast(stored, FLOAT32, most, counts)
        self._target, self._counts, self._name = target, counts, name
        self._codec = block_codec(target)
        self._work = np.empty(most, "<f4")
        self._fold = np.empty(most, "<f4")
        self._codes = np.empty(most, "|u1")
        self._out = np.empty(target.size(most), "|u1")

    def __call__(self, words: Words) -> Octets:
        """Return the blocks of `words`, bit patterns of stored elements; valid until the next call.

        Raises Unsupported if a value is infinite or NaN, which would corrupt its whole block.
        """
        values = self._widen(words).view("<f4")
        rows = self._out[: self._target.size(len(values))].reshape(-1, self._target.nbytes)
        with np.errstate(all="ignore"):  # overflows are counted or rejected
            if self._codec.bits == OCTET:
                self._signed(values, rows)
            else:
                self._unsigned(values, rows)
        return rows.reshape(-1)

    def _signed(self, values: Floats, rows: Octets) -> None:
        """Write the scale, then values / scale rounded to nearest, ties away from zero (8 bits)."""
        work = self._work[: len(values)]
        np.absolute(values, out=work)
        most = self._extreme(np.maximum, work)
        scale = most / np.float32(127)
        self._put_halves(rows, 0, scale, most)
        inverse, _broken = _inverse(scale)
        np.multiply(_spread(inverse), values, out=work)
        # setting the last bit moves a tie just above one half and changes no other rounding
        np.bitwise_or(work.view("<u4"), 1, out=work.view("<u4"))
        np.add(work, _ROUND, out=work)
        np.copyto(rows[:, 2:], work.view("<u4").reshape(-1, BLOCK), casting="unsafe")

    def _unsigned(self, values: Floats, rows: Octets) -> None:
        """Write one or two float16, the fifth bits, then pairs of nibbles (4 and 5 bits)."""
        bits, work = self._codec.bits, self._work[: len(values)]
        most, least = self._extreme(np.maximum, values), self._extreme(np.minimum, values)
        top, half = (1 << bits) - 1, 1 << bits - 1  # the greatest code, and the code of zero
        if not self._codec.minimum:
            peak = _peak(values, most, least)
            scale = peak / np.float32(-half)
            self._put_halves(rows, 0, scale, peak)
            inverse, broken = _inverse(scale)
            np.multiply(_spread(inverse), values, out=work)
            np.add(work, np.float32(half + 0.5), out=work)
        else:
            least = _first_zeros(values, least)
            width = most - least + np.float32(0)  # never -0.0
            scale = width / np.float32(top)
            self._put_halves(rows, 0, scale, width)
            self._put_halves(rows, 1, least, least)
            inverse, broken = _inverse(scale)
            np.subtract(values, _spread(least), out=work)
            np.multiply(work, _spread(inverse), out=work)
            np.add(work, np.float32(0.5), out=work)
        codes = self._codes[: len(values)]
        np.copyto(codes, work, casting="unsafe")
        np.minimum(codes, top, out=codes)
        if broken.any():
            codes.reshape(-1, BLOCK)[broken] = 0
        _pack(codes, rows, five_bits=bits > NIBBLE)

    def _extreme(self, pick: np.ufunc, values: Floats) -> Floats:
        """Reduce each block with `pick` (maximum or minimum); Unsupported if not finite."""
        size, blocks, done = len(values), len(values) // BLOCK, 0
        while size > blocks:
            size //= 2
            into = self._fold[done : done + size]
            pick(values[0 : 2 * size : 2], values[1 : 2 * size : 2], out=into)
            values, done = into, done + size
        if not np.isfinite(values).all():
            raise Unsupported(
                f"the tensor has infinite or NaN values, which {self._target.name} cannot store",
                where=self._name,
                hint="use --dtype float16 to keep them, or find them with inspect --stats",
            )
        return values.copy()

    def _put_halves(self, rows: Octets, column: int, numbers: Floats, wide: Floats) -> None:
        """Write `numbers` as float16 to a column of `rows`.

        `wide` has the numbers before the cast, to distinguish zeros from underflow.
        """
        halves = numbers.astype("<f2").view("<u2")
        rows.view("<u2")[:, column] = halves
        if self._counts is not None:
            magnitude = halves & 0x7FFF
            self._counts.overflowed += BLOCK * int(np.count_nonzero(magnitude == _INFINITY))
            if not magnitude.all():
                self._counts.zeroed += BLOCK * int(np.count_nonzero((magnitude == 0) & (wide != 0)))


def _spread(numbers: Floats) -> Floats:
    """Return a new array with each number repeated `BLOCK` times."""
    fours = np.repeat(numbers, 4).view("<c16")  # the widest element that NumPy repeats
    return np.repeat(fours, BLOCK // 4).view("<f4")


def _inverse(scale: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return 1 / scale (0 for zero or unusable scales), and which nonzero scales are unusable."""
    inverse = np.divide(np.float32(1), scale)
    broken = ~np.isfinite(inverse) | ~np.isfinite(scale)
    inverse[broken] = 0
    return inverse, broken & (scale != 0)


def _peak(values: Floats, most: Floats, least: Floats) -> Floats:
    """Return the first value of the greatest magnitude in each block; +0.0 if all are 0."""
    peak = np.where(most > -least, most, least)
    ties = np.flatnonzero(most == -least)
    if len(ties):
        rows = values.reshape(-1, BLOCK)[ties]
        at = np.absolute(rows).argmax(axis=1)
        peak[ties] = rows[np.arange(len(ties)), at] + np.float32(0)
    return peak


def _first_zeros(values: Floats, least: Floats) -> Floats:
    """Return `least`; where it is zero, with the sign of the first zero in the block."""
    zeros = np.flatnonzero(least == 0)
    if len(zeros):
        rows = values.reshape(-1, BLOCK)[zeros]
        least[zeros] = rows[np.arange(len(zeros)), (rows == 0).argmax(axis=1)]
    return least


def _pack(codes: Octets, rows: Octets, *, five_bits: bool) -> None:
    """Write codes to the ends of `rows`: element i in a low nibble, i + 16 in the high one."""
    if five_bits:
        high = np.packbits(codes >> 4, bitorder="little")
        rows[:, -20:-16] = high.reshape(-1, 4)
        np.bitwise_and(codes, 15, out=codes)
    halves = codes.view("<u8").reshape(-1, 4)  # nibbles do not cross bytes when they move by 4
    pairs = np.empty((len(halves), 2), "<u8")
    for column in (0, 1):
        np.left_shift(halves[:, column + 2], 4, out=pairs[:, column])
        np.bitwise_or(pairs[:, column], halves[:, column], out=pairs[:, column])
    rows[:, -16:] = pairs.view("|u1")

"""Casts among real floating-point types, bit-identical to torch's `.to(dtype)` except for NaNs.

All casts go through float32, as in torch: float64 to float16 is rounded twice there too. NumPy has
no bfloat16 and no float8, and its float16 code is scalar. This module computes both 16-bit types in
integer and float32 steps that NumPy vectorises, on chunks that stay in the L2 cache.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.tensors.dtypes import CASTS, DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cgpt_convert.tensors.read import CastCounts

    Words = NDArray[Any]  # little-endian bit patterns, unsigned
    Floats = NDArray[np.float32]

CHUNK = 64 << 10  # elements cast at once: 256 KiB of float32, and the same for each step's result
# With several threads, a thread waits for the GIL after each step, so fewer and longer steps are
# faster although they exceed the cache. The extra memory is worthwhile only for large tensors.
_LONG, _LARGE = 256 << 10, 8 << 20
_NBYTES = 24  # memory of a cast per element of a step

# Exponent bits, mantissa bits, bias, codes of NaN. torch/headeronly/util/Float8_*.h; OCP 8-bit
# floating point 1.0 (e4m3fn, e5m2); arXiv:2206.02915 (fnuz); OCP microscaling 1.0 (e8m0fnu).
FLOAT8 = {
    "float8_e4m3fn": (4, 3, 7, (0x7F, 0xFF)),
    "float8_e5m2": (5, 2, 15, (0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF)),
    "float8_e4m3fnuz": (4, 3, 8, (0x80,)),
    "float8_e5m2fnuz": (5, 2, 16, (0x80,)),
}
# The bits of infinity shifted left by one, which drops the sign; zero gives 0, a NaN a greater one
INFINITY = {
    "float64": 0x7FF << 53,
    "float32": 0xFF << 24,
    "float16": 0x1F << 11,
    "bfloat16": 0xFF << 8,
}

OVERFLOW = 65520.0  # float16's greatest value plus half a step: from here values round to infinity

UNDERFLOW = 2.0**-25  # half of its least value: up to here values round to zero


def at_once(numel: int, max_bytes: int, threads: int) -> int:
    """Return how many of `numel` elements to cast or quantize at once; more if several threads run.

    The buffers take at most `max_bytes`, or as much as `CHUNK` elements need.
    """
    if threads == 1 or numel < _LARGE:
        return CHUNK
    return max(CHUNK, min(_LONG, max_bytes // _NBYTES // CHUNK * CHUNK))


class Cast:
    """A cast of up to `most` elements at a time. `counts` collects losses; None skips counting.

    Raises Unsupported for a target other than float32, float16 and bfloat16.
    """

    def __init__(self, stored: DType, target: DType, most: int, counts: CastCounts | None) -> None:
        if not stored.is_float or target.name not in CASTS:
            raise Unsupported(f"a cast from {stored.name} to {target.name} is not supported")
        self._stored, self._target, self._counts = stored.name, target.name, counts
        self._wide = np.empty(most, "<f4")
        self._steps = np.empty((2, most), "<u4")
        self._halves = np.empty((2, most), "<u2")
        self._negative = np.empty(most, "?")
        self._tiny = np.full(most, 2.0**-14, "<f4")  # float16's least normal value

    def __call__(self, words: Words) -> Words:
        """Return the cast elements of `words`, as bit patterns valid until the next call."""
        if self._stored == "float32":
            wide = words.view("<f4")
        else:
            wide = self._wide[: len(words)]
            widen(words, self._stored, wide)
        bits = wide.view("<u4")
        if self._stored == "float64" and not _is_plain(bits, "float32"):
            self._count(words.view("<u8"), "float64", bits, "float32")
        if self._target == "float32":
            return bits
        out = self._halves[0, : len(words)]
        if self._target == "float16":
            plain = self._to_float16(wide, out)
        else:
            self._to_bfloat16(bits, out)
            plain = _is_plain(out, "bfloat16")
        if not plain:
            self._look_back(bits, out)
        return out

    def _to_bfloat16(self, bits: Words, out: Words) -> None:
        """Write the high halves of float32 `bits`, ties rounded to even; NaNs may be corrupted."""
        rounded = self._steps[0, : len(bits)]
        np.right_shift(bits, 16, out=rounded)
        np.bitwise_and(rounded, 1, out=rounded)
        np.add(rounded, 0x7FFF, out=rounded)
        np.add(rounded, bits, out=rounded)
        np.right_shift(rounded, 16, out=rounded)
        np.copyto(out, rounded, casting="unsafe")

    def _to_float16(self, wide: Floats, out: Words) -> bool:
        """Round float32 to float16, ties to even; return False if values may be lost.

        A value of exponent e is added to 2^(e+13), whose last mantissa bit weighs 2^(e-10) as in
        float16, so the processor rounds, and the sum's mantissa m is the result's significand.
        Below float16's normal range e stays -14. The result's bits are ((e + 14) << 10) + m: the
        hidden bit of m makes the exponent field e + 15, and so does a carry out of the mantissa.
        After M. Dukhan's FP16 library, fp16_ieee_from_fp32_value.
        """
        n, bits = len(wide), wide.view("<u4")
        total, power = self._steps[0, :n], self._steps[1, :n]
        signs, negative = self._halves[1, :n], self._negative[:n]
        np.absolute(wide, out=total.view("<f4"))
        with np.errstate(all="ignore"):  # overflow is counted and needs no warning; NaNs are kept
            if not np.maximum.reduce(total.view("<f4")) < OVERFLOW:  # or a NaN is present
                np.copyto(out.view("<f2"), wide, casting="same_kind")
                return False
        plain = self._counts is None or np.minimum.reduce(total.view("<f4")) > UNDERFLOW
        np.bitwise_and(bits, 0xFF << 23, out=power)
        np.maximum(power.view("<f4"), self._tiny[:n], out=power.view("<f4"))
        # The sum's exponent field is too large by 126 = 127 - 14 + 13. Only its low 6 bits remain,
        # in which -126 equals 2, so 2 is added in the mantissa.
        np.add(power, 13 << 23 | 2 << 10, out=power)
        np.add(total.view("<f4"), power.view("<f4"), out=total.view("<f4"))
        np.right_shift(power, 13, out=power)
        np.add(total, power, out=total)  # its low half: m + (exponent field of the power << 10)
        np.copyto(out, total, casting="unsafe")
        np.signbit(wide, out=negative)
        np.copyto(signs, negative)
        np.left_shift(signs, 15, out=signs)
        np.add(out, signs, out=out)
        return bool(plain)

    def _look_back(self, bits: Words, out: Words) -> None:
        """Repair NaNs and count losses, if zeros, infinities or NaNs resulted (rare)."""
        if self._target == "bfloat16":  # the carry may have made a NaN an infinity or a zero
            nan = bits << 1 > INFINITY["float32"]
            out[nan] = (bits[nan] >> 16) | 0x40  # its high half, as a quiet NaN
        self._count(bits, "float32", out, self._target)

    def _count(self, before: Words, source: str, after: Words, target: str) -> None:
        """Count the infinities and zeros that the cast introduced."""
        if self._counts is None:
            return
        before, after = before << 1, after << 1
        infinite = np.count_nonzero(after == INFINITY[target])
        infinite -= np.count_nonzero(before == INFINITY[source])
        self._counts.overflowed += int(infinite)
        self._counts.zeroed += int(np.count_nonzero(after == 0) - np.count_nonzero(before == 0))


def widen(words: Words, stored: str, out: Floats) -> None:
    """Write the values of `words`, bit patterns of type `stored`, to `out` as float32."""
    if stored in FLOAT8 or stored == "float8_e8m0fnu":
        np.take(float8_values(stored), words, out=out, mode="clip")  # "raise" would buffer
    elif stored == "bfloat16":
        np.copyto(out.view("<u4"), words)
        np.left_shift(out.view("<u4"), 16, out=out.view("<u4"))
    else:
        with np.errstate(all="ignore"):
            np.copyto(out, words.view(f"<f{words.itemsize}"), casting="same_kind")


@cache
def float8_values(name: str) -> Floats:
    """Return the 256 values of a float8 type as float32, indexed by code."""
    codes = np.arange(256)
    if name == "float8_e8m0fnu":  # an exponent, no sign, no mantissa
        values = np.ldexp(1.0, codes - 127)
        values[0xFF] = np.nan
        return np.asarray(values, "<f4")
    exponent_bits, mantissa_bits, bias, nans = FLOAT8[name]
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = codes & ((1 << mantissa_bits) - 1)
    hidden = (exponent > 0) << mantissa_bits
    values = np.ldexp(hidden + mantissa, np.maximum(exponent, 1) - bias - mantissa_bits)
    values = np.where(codes >> 7, -values, values)
    if name == "float8_e5m2":
        values[[0x7C, 0xFC]] = np.inf, -np.inf
    values[list(nans)] = np.nan
    return np.asarray(values, "<f4")


def _is_plain(words: Words, name: str) -> bool:
    """Return whether no element is zero, infinite or NaN: then the cast lost nothing."""
    magnitude = words << 1
    return bool(magnitude.min() > 0 and magnitude.max() < INFINITY[name])

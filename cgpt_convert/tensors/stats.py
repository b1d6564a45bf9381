"""Statistics of a tensor's values, streamed block by block."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from cgpt_convert.tensors.dtypes import FLOAT32
from cgpt_convert.tensors.tensor import Tensor

Statistics = dict[str, Any]

MOST_BINS = 12  # of a histogram
_SLICE = 1 << 16  # values at a time, so that the temporary arrays fit into the CPU's cache
# least and greatest exponent of a bin's width: scaling by its inverse neither overflows nor rounds
_LEAST, _GREATEST = -1000, sys.float_info.max_exp - 2


def statistics(tensor: Tensor) -> Statistics:
    """Return min, max, mean, std (of the population), histogram, zeros, nan, inf.

    The first five cover the finite values, in double precision. They are None if there are no
    finite values, for complex, quantized and raw-bit types, and where double precision overflows.

    The histogram has at most 12 bins of equal width: the least power of two (at least 1 for
    integers) of which so many, beginning at multiples of it, cover the values. Bin number i counts
    the values from `start + i * width` up to, but without, `start + (i + 1) * width`. Such bins
    depend on the least and the greatest value only, so that a single pass over the values can
    count them, merging pairs of bins whenever the range grows.
    """
    if tensor.stored.casts and not tensor.stored.numpy:
        tensor = tensor.cast(FLOAT32)  # without loss
    if not tensor.dtype.numpy:
        keys = ("min", "max", "mean", "std", "histogram", "zeros", "nan", "inf")
        return dict.fromkeys(keys)
    total = _Moments()
    with np.errstate(over="ignore", invalid="ignore"):
        for block in tensor.blocks():
            values = np.frombuffer(block, tensor.dtype.numpy)
            for first in range(0, values.size, _SLICE):
                total.add(values[first : first + _SLICE])
    return total.result()


def combined(parts: Iterable[Statistics]) -> Statistics:
    """Return the statistics of the values of several tensors together."""
    total = _Moments()
    for part in parts:
        total.join(part)
    return total.result()


class _Moments:
    """Moments merged pairwise over blocks (Chan, Golub and LeVeque 1979), to avoid cancellation."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0  # sum of squared differences from the mean
        self.least, self.most = math.inf, -math.inf
        self.zeros = self.nan = self.inf = 0
        self.bins = _Bins()

    def add(self, values: np.ndarray) -> None:
        self.zeros += int(np.count_nonzero(values == 0))
        if values.dtype.kind in "fc":
            finite = np.isfinite(values)
            nan = int(np.count_nonzero(np.isnan(values)))
            self.nan += nan
            self.inf += values.size - int(np.count_nonzero(finite)) - nan
            values = values[finite]
        if values.size and values.dtype.kind != "c":
            least, most = float(values.min()), float(values.max())
            self.least, self.most = min(self.least, least), max(self.most, most)
            if values.dtype.kind != "f":
                self.bins.exponent = max(self.bins.exponent, 0)
            doubles = values.astype(np.float64)
            self.bins.add(doubles, self.least, self.most)
            mean = float(doubles.mean())
            doubles -= mean
            self.merge(values.size, mean, float(np.dot(doubles, doubles)))

    def join(self, part: Statistics) -> None:
        """Add the values of which `part` are the statistics."""
        self.zeros += part["zeros"] or 0
        self.nan += part["nan"] or 0
        self.inf += part["inf"] or 0
        if part["min"] is None:
            return
        self.least, self.most = min(self.least, part["min"]), max(self.most, part["max"])
        histogram, mean, std = part["histogram"], part["mean"], part["std"]
        if histogram is None:
            self.bins.overflown = True
        else:
            self.bins.join(histogram, self.least, self.most)
        if histogram is None or mean is None or std is None:
            self.merge(1, math.inf, math.inf)
        else:
            count = sum(histogram["counts"])
            self.merge(count, mean, std * std * count)

    def merge(self, size: int, mean: float, squares: float) -> None:
        count = self.count + size
        if self.count:
            shift = mean - self.mean
            self.squares += squares + shift * shift * self.count * size / count
            self.mean += shift * size / count
        else:
            self.mean, self.squares = mean, squares
        self.count = count

    def result(self) -> Statistics:
        known = self.least <= self.most
        finite = math.isfinite(self.squares)
        return {
            "min": self.least if known else None,
            "max": self.most if known else None,
            "mean": self.mean if known and math.isfinite(self.mean) else None,
            "std": math.sqrt(self.squares / self.count) if known and finite else None,
            "histogram": self.bins.result() if known else None,
            "zeros": self.zeros,
            "nan": self.nan,
            "inf": self.inf,
        }


class _Bins:
    """Counts of values by `floor(value / 2**exponent)`."""

    def __init__(self) -> None:
        self.exponent = _LEAST
        self.counts: dict[int, int] = {}
        self.overflown = False

    def add(self, values: np.ndarray, least: float, most: float) -> None:
        """Count the values. `least` and `most` are those of all values so far, these included."""
        self.widen(_exponent(least, most))
        below = 0
        for number in range(_number(least, self.exponent), _number(most, self.exponent) + 1):
            end = (number + 1) * 2.0**self.exponent
            until = int(np.count_nonzero(values < end))
            if until > below:
                self.counts[number] = self.counts.get(number, 0) + until - below
            below = until

    def join(self, histogram: dict[str, Any], least: float, most: float) -> None:
        """Add the counts of another histogram. `least` and `most` are those of all values."""
        exponent = math.frexp(histogram["width"])[1] - 1
        self.widen(max(exponent, _exponent(least, most)))
        first = int(histogram["start"] / histogram["width"])
        for number, count in enumerate(histogram["counts"], first):
            wide = number >> (self.exponent - exponent)
            self.counts[wide] = self.counts.get(wide, 0) + count

    def widen(self, exponent: int) -> None:
        """Make the bins as wide as 2**exponent, if they are not wider already."""
        wider = exponent - self.exponent
        if wider <= 0:
            return
        counts: dict[int, int] = {}
        for number, count in self.counts.items():
            counts[number >> wider] = counts.get(number >> wider, 0) + count
        self.exponent, self.counts = exponent, counts

    def result(self) -> dict[str, Any] | None:
        """Return the histogram for JSON; None if double precision does not have its start."""
        if self.overflown:
            return None
        first, last = min(self.counts), max(self.counts)
        width = 2.0**self.exponent
        if math.isinf(first * width):
            return None
        counts = [self.counts.get(number, 0) for number in range(first, last + 1)]
        return {"start": first * width, "width": width, "counts": counts}


def _exponent(least: float, most: float) -> int:
    """Return the least exponent for which at most MOST_BINS bins cover least to most."""
    magnitude = max(abs(least), abs(most))
    exponent = _LEAST
    if magnitude:
        exponent = max(exponent, math.frexp(magnitude)[1] - sys.float_info.mant_dig)
    if most > least:
        spread = math.frexp(most / 2 - least / 2)[1] + 1  # halves, so that nothing overflows
        exponent = max(exponent, spread - MOST_BINS.bit_length() - 1)
    exponent = min(exponent, _GREATEST)
    while _number(most, exponent) - _number(least, exponent) >= MOST_BINS:
        exponent += 1
    return exponent


def _number(value: float, exponent: int) -> int:
    scaled = value * 2.0**-exponent
    return math.floor(scaled) if scaled or value >= 0 else -1  # a negative value may underflow

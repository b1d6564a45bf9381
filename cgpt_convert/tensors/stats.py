"""Statistics of a tensor's values, streamed block by block."""

from __future__ import annotations

import math

import numpy as np

from cgpt_convert.tensors.dtypes import FLOAT32
from cgpt_convert.tensors.tensor import Tensor

Statistics = dict[str, float | int | None]


def statistics(tensor: Tensor) -> Statistics:
    """Return min, max, mean, std (of the population), zeros, nan, inf.

    The first four cover the finite values, in double precision. They are None if there are no
    finite values, for complex, quantized and raw-bit types, and where double precision overflows.
    """
    if tensor.stored.casts and not tensor.stored.numpy:
        tensor = tensor.cast(FLOAT32)  # without loss
    if not tensor.dtype.numpy:
        return dict.fromkeys(("min", "max", "mean", "std", "zeros", "nan", "inf"))
    total = _Moments()
    with np.errstate(over="ignore", invalid="ignore"):
        for block in tensor.blocks():
            total.add(np.frombuffer(block, tensor.dtype.numpy))
    return total.result()


class _Moments:
    """Moments merged pairwise over blocks (Chan, Golub and LeVeque 1979), to avoid cancellation."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0  # sum of squared differences from the mean
        self.least, self.most = math.inf, -math.inf
        self.zeros = self.nan = self.inf = 0
        self.ordered = True

    def add(self, values: np.ndarray) -> None:
        self.zeros += int(np.count_nonzero(values == 0))
        if values.dtype.kind in "fc":
            finite = np.isfinite(values)
            nan = int(np.count_nonzero(np.isnan(values)))
            self.nan += nan
            self.inf += values.size - int(np.count_nonzero(finite)) - nan
            values = values[finite]
        if values.dtype.kind == "c":
            self.ordered = False
        elif values.size:
            self.merge(values.astype(np.float64), float(values.min()), float(values.max()))

    def merge(self, values: np.ndarray, least: float, most: float) -> None:
        mean = float(values.mean())
        values -= mean
        squares = float(np.dot(values, values))
        count = self.count + values.size
        shift = mean - self.mean
        self.squares += squares + shift * shift * self.count * values.size / count
        self.mean += shift * values.size / count
        self.count = count
        self.least, self.most = min(self.least, least), max(self.most, most)

    def result(self) -> Statistics:
        known = self.ordered and self.count
        finite = math.isfinite(self.squares)
        return {
            "min": self.least if known else None,
            "max": self.most if known else None,
            "mean": self.mean if known and math.isfinite(self.mean) else None,
            "std": math.sqrt(self.squares / self.count) if known and finite else None,
            "zeros": self.zeros,
            "nan": self.nan,
            "inf": self.inf,
        }

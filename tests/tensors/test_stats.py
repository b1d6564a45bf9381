"""Histograms of values: NumPy's, in bins that depend on the least and the greatest value only."""

import math
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt_convert import open_checkpoint
from cgpt_convert.tensors.stats import MOST_BINS, combined, statistics

VALUES = st.lists(
    st.floats(-1e300, 1e300, allow_subnormal=False)
    | st.sampled_from([math.nan, math.inf, 0.0, 1e-100]),
    max_size=40,
)


def of(values: list[float]) -> dict[str, Any]:
    """The statistics of a tensor that has these values."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.npy"
        np.save(path, np.array(values, np.float64))
        (tensor,) = open_checkpoint(str(path)).values()
        return statistics(tensor)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_bins_are_numpys_and_as_narrow_as_possible(values: list[float]) -> None:
    finite = np.array([value for value in values if math.isfinite(value)])
    histogram = of(values)["histogram"]
    assert (histogram is None) == (finite.size == 0)
    if histogram is None:
        return
    width, counts = histogram["width"], histogram["counts"]
    edges = histogram["start"] + width * np.arange(len(counts) + 1)
    assert np.histogram(finite, edges)[0].tolist() == counts
    assert counts[0]
    assert counts[-1]
    assert len(counts) <= MOST_BINS
    assert math.frexp(width)[0] == 0.5  # a power of two
    half = Fraction(width) / 2
    first, last = (math.floor(Fraction(float(end)) / half) for end in (finite.min(), finite.max()))
    floor = max(2.0**-1000, math.ulp(float(np.abs(finite).max())))
    assert last - first >= MOST_BINS or half < floor


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, max_size=4))
def test_parts_together_have_the_statistics_of_all_values(parts: list[list[float]]) -> None:
    together = of([value for part in parts for value in part])
    joined = combined(map(of, parts))
    for key in ("min", "max", "histogram", "zeros", "nan", "inf"):
        assert joined[key] == together[key]
    scale = max((abs(together[key] or 0) for key in ("min", "max")), default=0)
    for key in ("mean", "std"):
        if joined[key] is not None and together[key] is not None:
            assert joined[key] == pytest.approx(together[key], rel=1e-9, abs=scale * 1e-9)

"""The columns of `inspect --stats`, in the table of tensors and in the tree."""

from __future__ import annotations

from typing import Any

from cgpt_convert.cli import style
from cgpt_convert.core.checks import FAILED

COLUMNS = ("distribution", "min", "max", "mean", "std", "zeros", "nan", "inf")
_LARGE, _HUGE = 9999.5, 1e7  # between them a number is shown without an exponent


def cells_of(stats: dict[str, Any]) -> list[str]:
    """Return the cells of the columns in COLUMNS. Counts of 0 are left blank."""
    histogram = stats["histogram"]
    return [
        style.sparkline(histogram["counts"]) if histogram else "",
        *(_number(stats[key]) for key in COLUMNS[1:5]),
        f"{stats['zeros']:,}" if stats["zeros"] else "",
        *(style.verdict(f"{stats[key]:,}", FAILED) if stats[key] else "" for key in ("nan", "inf")),
    ]


def _number(value: float | None) -> str:
    """Return four digits, or a whole number where that is as short."""
    if value is None:
        return ""
    return f"{value:,.0f}" if _LARGE <= abs(value) < _HUGE else f"{value:.4g}"

"""How cost grows with the number of tensors or shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.results import Results, Row

FLAT = 1.25  # times the least, under which nothing is called growth
MOST = 1.15  # a slope that is still called linear; twice the work at four times the cost is 2


class Growth(NamedTuple):
    """The rows of one command, by how many tensors or shards there were."""

    kind: str
    command: str
    rows: dict[int, Row]

    @property
    def seconds(self) -> float:
        """The slope of the seconds."""
        return _slope({number: row.wall for number, row in self.rows.items()})

    @property
    def memory(self) -> float:
        """The slope of the peak."""
        return _slope({number: row.peak for number, row in self.rows.items()})

    @property
    def linear(self) -> bool:
        """Does neither grow faster than the work?"""
        return max(self.seconds, self.memory) <= MOST

    @property
    def each(self) -> tuple[float, float]:
        """Seconds and bytes that one more costs, at the upper end."""
        (less, before), (more, after) = list(self.rows.items())[-2:]
        many = more - less
        return (after.wall - before.wall) / many, (after.peak - before.peak) / many


def growths(results: Results, kind: str) -> list[Growth]:
    """Of each command that was measured with more than one number of them."""
    found: dict[str, dict[int, Row]] = {}
    for key, row in results.rows.items():
        if key.kind == kind:
            found.setdefault(key.command, {})[int(key.size)] = row
    return [
        Growth(kind, command, dict(sorted(rows.items())))
        for command, rows in found.items()
        if len(rows) > 1
    ]


def numbers(found: Sequence[Growth]) -> list[int]:
    """Of how many tensors or shards there are rows."""
    return sorted({number for growth in found for number in growth.rows})


def _slope(values: dict[int, float]) -> float:
    """How steep the last step is where both axes are logarithms: 1 is linear, 2 is quadratic.

    Of what is more than with the fewest, as what a command takes to start hides the growth; 0 if
    there is hardly more than that.
    """
    (less, before), (more, after) = list(values.items())[-2:]
    start = min(values.values())
    if after < FLAT * start:
        return 0.0
    if before <= start:
        start = 0.0
    return math.log((after - start) / (before - start)) / math.log(more / less)

"""What was measured, and the ratios that follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.measure import Run
from benchmarks.tasks import Task


class Series(NamedTuple):
    """The runs of one task, and of the copy right before each."""

    task: Task
    runs: list[Run]
    copies: list[Run]

    @property
    def walls(self) -> list[float]:
        """Seconds, run by run."""
        return [run.wall for run in self.runs]

    @property
    def wall(self) -> float:
        """Median seconds."""
        return statistics.median(self.walls)

    @property
    def cpu(self) -> float:
        """Median seconds of CPU, user and system."""
        return statistics.median(run.user + run.system for run in self.runs)

    @property
    def peak(self) -> int:
        """The most memory that any run had, in bytes."""
        return max(run.peak for run in self.runs)

    @property
    def ratio(self) -> float:
        """Median ratio of a run's seconds to those of the copy before it."""
        return ratio(self.walls, [copy.wall for copy in self.copies])

    @property
    def excess(self) -> float:
        """Median seconds that a run takes longer than the copy before it."""
        pairs = zip(self.runs, self.copies, strict=True)
        return statistics.median(run.wall - copy.wall for run, copy in pairs)


class Results(NamedTuple):
    """All that was measured; by size and layout what reads a checkpoint."""

    start_up: list[Series]
    series: dict[tuple[str, str], list[Series]]
    nbytes: dict[tuple[str, str], int]
    load: float  # the load average before the first run
    floor: int  # the harness's own memory in bytes, below which a peak tells nothing

    def get(self, size: str, layout: str, task: Task) -> Series | None:
        """The runs of a task; None if that size was not measured."""
        found = self.series.get((size, layout), [])
        return next((each for each in found if each.task == task), None)


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median ratio of paired runs."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))

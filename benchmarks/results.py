"""What was measured, kept in a JSON file from one session to the next, and ratios of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import Run

MEMORY = "tmpfs"  # the file system that is no disk


class Key(NamedTuple):
    """Which measurement a row is of; a new one takes the place of an old one."""

    size: str  # a model of tests.helpers.vendor; or how many tensors or shards
    kind: str  # a layout of tests.helpers.vendor, "start-up", "generation", "tensors" or "shards"
    command: str
    file_system: str  # that outputs are on

    def __str__(self) -> str:
        """What `--only` is compared with."""
        return "/".join(self[:3])


class Session(NamedTuple):
    """On what and when rows were measured in one go."""

    date: str
    machine: str
    load: float  # the load average before the first run
    floor: int  # the harness's own memory in bytes, below which a peak tells nothing


class Row(NamedTuple):
    """The runs of one command, and of the `cp` right before each that writes."""

    key: Key
    nbytes: int  # of the checkpoint
    cached: float  # the least share of it in the page cache before a run
    session: int  # its place in Results.sessions
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
        return _paired(self.walls, [copy.wall for copy in self.copies])

    @property
    def excess(self) -> float:
        """Median seconds that a run takes longer than the copy before it."""
        pairs = zip(self.runs, self.copies, strict=True)
        return statistics.median(run.wall - copy.wall for run, copy in pairs)

    def times(self, other: Row) -> float:
        """Seconds of this by those of another: of runs in turns if they were, else of medians."""
        if self.session == other.session and len(self.runs) == len(other.runs):
            return _paired(self.walls, other.walls)
        return self.wall / other.wall


class Results:
    """All rows, in the order in which their keys were first measured."""

    def __init__(self, sessions: list[Session], rows: dict[Key, Row]) -> None:
        self.sessions = sessions
        self.rows = rows

    def find(self, size: str, kind: str, command: str, *, memory: bool = False) -> Row | None:
        """The row of that command on a disk, or in memory; None if it was not measured."""
        for key, row in self.rows.items():
            if key[:3] == (size, kind, command) and (key.file_system == MEMORY) == memory:
                return row
        return None

    def save(self, path: Path) -> None:
        """Write the file, a line a row."""
        sessions = ",\n".join(json.dumps(session._asdict()) for session in self.sessions)
        rows = ",\n".join(json.dumps(_plain(row)) for row in self.rows.values())
        path.write_text(f'{{"sessions": [\n{sessions}\n],\n"rows": [\n{rows}\n]}}\n')


def load(path: Path) -> Results:
    """What the file holds; nothing if there is none."""
    if not path.exists():
        return Results([], {})
    found = json.loads(path.read_text())
    rows = [_row(row) for row in found["rows"]]
    return Results(
        [Session(**session) for session in found["sessions"]], {row.key: row for row in rows}
    )


def _plain(row: Row) -> dict[str, object]:
    """The row for JSON, times to a microsecond."""
    series = {
        name: [[*(round(seconds, 6) for seconds in run[:3]), run.peak] for run in runs]
        for name, runs in (("runs", row.runs), ("copies", row.copies))
    }
    return row._asdict() | series


def _row(found: dict[str, Any]) -> Row:
    series = {name: [Run(*run) for run in found[name]] for name in ("runs", "copies")}
    return Row(**found | series | {"key": Key(*found["key"])})


def _paired(above: Sequence[float], below: Sequence[float]) -> float:
    """The median ratio of paired runs."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))

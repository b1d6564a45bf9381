"""All that is wanted, measured group by group, and kept from the first round on."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from benchmarks import measure
from benchmarks.groups import Group
from benchmarks.measure import Run
from benchmarks.results import Key, Results, Row, Session
from benchmarks.tasks import COPY, Task


class Wish(NamedTuple):
    """What is to be measured, and where."""

    runs: int
    only: list[str]  # patterns of keys
    missing: bool  # only what there is no result of
    folder: Path  # of checkpoints
    tidy: bool  # remove them as soon as they are measured
    outputs: Path  # of what is written
    writing: bool  # only what writes there


class Measuring:
    """A session: adds to the results, and has them kept after each round of runs."""

    def __init__(self, wish: Wish, results: Results, keep: Callable[[], None]) -> None:
        self.wish = wish
        self.results = results
        self.keep = keep
        self.scratch = wish.outputs / "output"
        machine, self.file_system = self._place()
        load, _, _ = os.getloadavg()
        date = datetime.now(timezone.utc).date().isoformat()
        self.session = Session(date, machine, load, measure.run(["true"]).peak)

    def run(self, groups: Iterator[Group]) -> None:
        """Measure what is wanted of the groups."""
        last = None
        for group in groups:
            tasks = [task for task in group.tasks if self._wanted(self._key(group, task), task)]
            if not tasks:
                continue
            if self.session not in self.results.sessions:
                self.results.sessions.append(self.session)
            source = group.make(self.wish.folder)
            if last and self.wish.tidy and last != source.parent:
                shutil.rmtree(last)
            last = source.parent
            self._rounds(group, tasks, source)

    def _place(self) -> tuple[str, str]:
        """The machine in words, and the file system of outputs."""
        argv = [sys.executable, "-m", "benchmarks.machine", str(self.wish.outputs)]
        measure.run(argv, str(self.scratch))
        machine, file_system = json.loads(self.scratch.read_text())
        self.scratch.unlink()
        return machine, file_system

    def _key(self, group: Group, task: Task) -> Key:
        return Key(group.size, group.kind, task.name, self.file_system)

    def _wanted(self, key: Key, task: Task) -> bool:
        return (
            any(fnmatchcase(str(key), pattern) for pattern in self.wish.only)
            and not (self.wish.missing and key in self.results.rows)
            and (task.writes or not self.wish.writing)
        )

    def _rounds(self, group: Group, tasks: list[Task], source: Path) -> None:
        """The runs of each task in turns: A B C, A B C ..., with a `cp` before what writes."""
        nbytes = source.stat().st_size
        fitting = [task for task in tasks if nbytes <= task.up_to]
        numbers = {task: group.number(task, nbytes, self.wish.runs) for task in fitting}
        session = self.results.sessions.index(self.session)
        for turn in range(max(numbers.values(), default=0)):
            for task in (task for task, number in numbers.items() if turn < number):
                key = self._key(group, task)
                if not turn:
                    self.results.rows[key] = Row(key, nbytes, 1.0, session, [], [])
                self._add(self.results.rows[key], task, source, whole=group.whole)
            self.keep()

    def _add(self, row: Row, task: Task, source: Path, *, whole: bool) -> None:
        """One run more of the task, and one of `cp`."""
        cached = row.cached
        if whole and task.writes:
            cached = min(cached, measure.warm(source))
            row.copies.append(self._timed(COPY, source))
        if whole:
            cached = min(cached, measure.warm(source))
        row.runs.append(self._timed(task, source))
        self.results.rows[row.key] = row._replace(cached=round(cached, 3))
        print(f"{row.key}: {row.runs[-1].wall:.3f} s", file=sys.stderr)

    def _timed(self, task: Task, source: Path) -> Run:
        """One run of the task, nothing left behind."""
        printed = self.wish.outputs / "printed"
        argv = task.filled(source, self.scratch)
        run = measure.run(argv, str(printed) if task.seconds else os.devnull)
        if task.seconds:  # of part of it, whose share of the CPU nobody knows
            found = json.loads(printed.read_text())
            seconds = found["seconds"][task.seconds]
            tokens = len(found["new_ids"]) - 1 if task.seconds == "rest" else 1
            run = Run(seconds / tokens, 0, 0, run.peak)
        measure.remove(self.scratch)
        return run

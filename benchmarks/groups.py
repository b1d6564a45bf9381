"""What is run on which checkpoint: the groups of rows that make up the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import tasks
from benchmarks.checkpoints import LAYOUTS, checkpoint, synthetic, with_gguf
from benchmarks.tasks import Task

LARGE = 2 * tasks.GB  # files that take so long to copy are copied less often
TENSORS = (10, 100, 1_000, 10_000, 100_000)
SHARDS = (1, 10, 100, 500)
PER_SHARD = 20  # small tensors
SLOW = 50_000  # tensors, from where on one run is enough


class Group(NamedTuple):
    """Tasks that are run in turns on one checkpoint, which is made when one of them is wanted."""

    size: str
    kind: str
    tasks: tuple[Task, ...]
    make: Callable[[Path], Path]
    whole: bool = True  # is the checkpoint read as a whole, so that it has to be in memory?

    def number(self, task: Task, nbytes: int, runs: int) -> int:
        """How many runs of the task on so many bytes, if of small ones there are `runs`."""
        if nbytes > LARGE:
            return 1 if task.slow else (runs + 1) // 2
        if self.kind in {"tensors", "shards"}:
            return 1 if int(self.size) > SLOW else (runs + 1) // 2
        return 4 * runs if self.kind == "start-up" else runs


def groups(sizes: Sequence[str], most: int) -> Iterator[Group]:
    """All groups; of scaling, those of at most so many tensors."""
    for size in sizes:
        for layout in LAYOUTS:
            yield from _models(size, layout, first=size == sizes[0])
    for number in TENSORS:
        if number <= most:
            yield _tensors(number)
    for number in SHARDS:
        if number * PER_SHARD <= most:
            yield _shards(number)


def _models(size: str, layout: str, *, first: bool) -> Iterator[Group]:
    def make(folder: Path) -> Path:
        return checkpoint(size, layout, folder)

    chosen = tasks.CONVERSIONS
    if layout == "cs":  # llama.cpp's converter takes only that one; so do the rest
        if first:
            yield Group("", "start-up", tasks.START_UP, make, whole=False)
        with_it = (lambda folder: with_gguf(make(folder))) if first else make
        yield Group(size, "generation", tasks.GENERATION if first else (tasks.GENERATE,), with_it)
        chosen += tuple(tasks.LLAMA_CPP.values())
    yield Group(size, layout, chosen, make)


def _tensors(number: int) -> Group:
    def make(folder: Path) -> Path:
        return synthetic(number, 1, folder)

    return Group(str(number), "tensors", tasks.TENSORS, make, whole=False)


def _shards(number: int) -> Group:
    def make(folder: Path) -> Path:
        return synthetic(number * PER_SHARD, number, folder)

    return Group(str(number), "shards", tasks.SHARDS, make, whole=False)

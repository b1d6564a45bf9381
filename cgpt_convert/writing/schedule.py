"""Order jobs for threads, and group those that one thread must run in sequence."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable

from cgpt_convert.core.threads import Job
from cgpt_convert.plan import Part
from cgpt_convert.sources.inflate import DeflatedMember
from cgpt_convert.tensors.tensor import Tensor


def do_all(jobs: deque[Job]) -> None:
    """Run the remaining jobs, which several threads may share."""
    while True:
        try:
            job = jobs.popleft()
        except IndexError:
            return
        job()


def in_turn(jobs: Iterable[tuple[Part, Job]]) -> list[Job]:
    """Return the jobs, with those of one compressed storage merged into one sequential job.

    Otherwise each would decompress from the start; a small file can have thousands of them.
    """
    alone: list[Job] = []
    packed: dict[int, list[tuple[int, Job]]] = {}
    for part, job in jobs:
        if isinstance(part, Tensor) and isinstance(part.storage.source, DeflatedMember):
            first = part.stored.size(part.start)  # in bytes, since dtypes may differ
            packed.setdefault(id(part.storage.source), []).append((first, job))
        else:
            alone.append(job)
    ordered = (sorted(each, key=lambda pair: pair[0]) for each in packed.values())
    return [functools.partial(do_all, deque(job for _, job in each)) for each in ordered] + alone

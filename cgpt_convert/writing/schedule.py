"""Jobs in an order: what threads share, and what one of them has to do by itself."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable

from cgpt_convert.core.threads import Job
from cgpt_convert.plan import Part
from cgpt_convert.sources.inflate import Deflated
from cgpt_convert.tensors.tensor import Tensor


def do_all(jobs: deque[Job]) -> None:
    """Do what is left of the jobs, which several threads may share."""
    while True:
        try:
            job = jobs.popleft()
        except IndexError:
            return
        job()


def in_turn(jobs: Iterable[tuple[Part, Job]]) -> list[Job]:
    """The jobs; those that read the same packed storage are one, which reads it forward.

    Else each would start again from its beginning: a small file can have thousands of them.
    """
    alone: list[Job] = []
    packed: dict[int, list[tuple[int, Job]]] = {}
    for part, job in jobs:
        if isinstance(part, Tensor) and isinstance(part.storage.source, Deflated):
            first = part.stored.size(part.start)  # in bytes: types may differ
            packed.setdefault(id(part.storage.source), []).append((first, job))
        else:
            alone.append(job)
    ordered = (sorted(each, key=lambda pair: pair[0]) for each in packed.values())
    return [functools.partial(do_all, deque(job for _, job in each)) for each in ordered] + alone

"""How fast this machine is just now, so that what is measured on it means the same everywhere.

Shared machines change their speed within a minute, by four times where this was written. Times are
therefore told as they would be at a reference speed: that at which `_task` takes `REFERENCE`, and
CPython 3.11 counts to 5,000,000 in a `for` loop that adds in 0.25 s.
"""

from __future__ import annotations

import gc
import time

REFERENCE = 0.013  # seconds
_ROUNDS = 60_000


class _Machine:
    def __init__(self) -> None:
        self.stack: list[object] = []
        self.at = 0

    def step(self, number: int) -> None:
        self.stack.append((number, self.at))
        self.at += 1


def _task() -> int:
    """What the readers do most: calls, attributes, small objects."""
    machine = _Machine()
    step = machine.step
    for number in range(_ROUNDS):
        step(number)
    return len(machine.stack)


def slowness() -> float:
    """How many times longer than at the reference speed things take now, by one try of 13 ms."""
    was = gc.isenabled()
    gc.disable()
    started = time.perf_counter()
    _task()
    seconds = time.perf_counter() - started
    if was:
        gc.enable()
    return seconds / REFERENCE

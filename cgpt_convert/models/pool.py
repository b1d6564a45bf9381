"""Threads that wait for work, for work that is too short for an executor's."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

P = TypeVar("P")
R = TypeVar("R")

_Job = tuple[Callable[[Any], Any], Any, int, "SimpleQueue[_Done]"]
_Done = tuple[int, Any, BaseException | None]


class Pool:
    """So many threads beside the caller's. They end with the pool.

    Handing a part over and hearing that it is done takes some 30 us, half of what
    `concurrent.futures` takes: of a token's hundred products each is shared.
    """

    def __init__(self, threads: int) -> None:
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        for _ in range(threads):
            Thread(target=_serve, args=(self._inbox,), daemon=True).start()
        weakref.finalize(self, _dismiss, self._inbox, threads)

    def map(self, work: Callable[[P], R], parts: Sequence[P]) -> list[R]:
        """What `work` gives for each part, in their order; the caller's thread does the first.

        Raises what `work` raises, when no part is worked on any more.
        """
        outbox: SimpleQueue[_Done] = SimpleQueue()
        for number, part in enumerate(parts[1:], 1):
            self._inbox.put((work, part, number, outbox))
        try:
            first = work(parts[0])
        finally:
            done = sorted((outbox.get() for _ in parts[1:]), key=lambda each: each[0])
        for _, _, error in done:
            if error is not None:
                raise error
        return [first, *(result for _, result, _ in done)]


def _serve(inbox: SimpleQueue[_Job | None]) -> None:
    while job := inbox.get():
        work, part, number, outbox = job
        try:
            outbox.put((number, work(part), None))
        except BaseException as error:  # noqa: BLE001  it is the caller's
            outbox.put((number, None, error))
        del job, work, part, outbox  # the arrays, while the next is waited for


def _dismiss(inbox: SimpleQueue[_Job | None], threads: int) -> None:
    for _ in range(threads):
        inbox.put(None)

"""Threads that wait for work, for work that is too short for an executor's."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

P = TypeVar("P")
R = TypeVar("R")

_Done = tuple[int, Any, BaseException | None]
_Job = tuple[Callable[[Any], Any], "deque[tuple[int, Any]]", "SimpleQueue[_Done]"]


class Pool:
    """So many threads beside the caller's. They end with the pool.

    Handing a part over takes some 25 us, half of what `concurrent.futures` takes: of a token's
    products each is shared. A part that no thread has begun when the caller has done its own, as
    other programs have the cores, is the caller's, too.
    """

    def __init__(self, threads: int) -> None:
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        for _ in range(threads):
            Thread(target=_serve, args=(self._inbox,), daemon=True).start()
        weakref.finalize(self, _dismiss, self._inbox, threads)

    def map(self, work: Callable[[P], R], parts: Sequence[P]) -> list[R]:
        """What `work` gives for each part, in their order; the caller's thread works, too.

        Raises what `work` raises, when no part is worked on any more.
        """
        todo, outbox = deque(enumerate(parts)), SimpleQueue[_Done]()
        for _ in parts[1:]:
            self._inbox.put((work, todo, outbox))
        _work_off(work, todo, outbox)
        done = sorted((outbox.get() for _ in parts), key=lambda each: each[0])
        for _, _, error in done:
            if error is not None:
                raise error
        return [result for _, result, _ in done]


def _work_off(
    work: Callable[[Any], Any], todo: deque[tuple[int, Any]], outbox: SimpleQueue[_Done]
) -> None:
    """Do what nobody has begun."""
    while True:
        try:
            number, part = todo.popleft()
        except IndexError:
            return
        try:
            outbox.put((number, work(part), None))
        except BaseException as error:  # noqa: BLE001  it is the caller's
            outbox.put((number, None, error))


def _serve(inbox: SimpleQueue[_Job | None]) -> None:
    while job := inbox.get():
        _work_off(*job)
        del job  # and the arrays, while the next is waited for


def _dismiss(inbox: SimpleQueue[_Job | None], threads: int) -> None:
    for _ in range(threads):
        inbox.put(None)

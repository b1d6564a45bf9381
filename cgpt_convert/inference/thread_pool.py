"""A pool of waiting threads for work that is too short for an executor."""

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


class ThreadPool:
    """A pool of `threads` threads in addition to the caller's. They end with the pool.

    Handing over a part takes about 25 us, half of the time of `concurrent.futures`; every product
    of a token is shared this way. The caller also does the parts that no thread has started when it
    has finished its own, for example because other programs use the cores.
    """

    def __init__(self, threads: int) -> None:
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        for _ in range(threads):
            Thread(target=_serve, args=(self._inbox,), daemon=True).start()
        weakref.finalize(self, _dismiss, self._inbox, threads)

    def map(self, work: Callable[[P], R], parts: Sequence[P]) -> list[R]:
        """Return the results of `work` for each part, in order; the caller's thread also works.

        Raises the error of `work` after all parts have ended.
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
    """Run the parts that no other thread has started."""
    while True:
        try:
            number, part = todo.popleft()
        except IndexError:
            return
        try:
            outbox.put((number, work(part), None))
        except BaseException as error:  # noqa: BLE001  raised in the caller
            outbox.put((number, None, error))


def _serve(inbox: SimpleQueue[_Job | None]) -> None:
    while job := inbox.get():
        _work_off(*job)
        del job  # free its arrays while waiting for the next


def _dismiss(inbox: SimpleQueue[_Job | None], threads: int) -> None:
    for _ in range(threads):
        inbox.put(None)

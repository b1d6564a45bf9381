"""Fetching of ranges by a few threads, with retries."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from cgpt_convert.core.errors import CgptError, Unreadable
from cgpt_convert.core.threads import Event
from cgpt_convert.sources.remote.remote_object import RemoteObject, TransientError
from cgpt_convert.sources.remote.remote_settings import settings

T = TypeVar("T")
R = TypeVar("R")

_FIRST_WAIT, _LONGEST_WAIT = 0.25, 20.0  # seconds; each wait is twice the one before
_IDLE = 2.0  # seconds after which a thread without work ends
_LOOK = 0.2  # seconds between checks while waiting
_PROGRESS = 64 << 10  # bytes of progress that reset the failure count


def patiently(name: str, attempt: Callable[[], T], done: Callable[[], int] = lambda: 0) -> T:
    """Return the result of `attempt`, retrying after each TransientError with growing delays.

    `done` returns the number of bytes received so far; progress resets the failure count. Raises
    Unreadable after `settings.retries` consecutive retries.
    """
    failures = mark = 0
    while True:
        try:
            return attempt()
        except TransientError as broken:  # noqa: PERF203  the loop retries
            if done() - mark >= _PROGRESS:
                failures, mark = 0, done()
            if failures == settings.retries:
                times = f"{failures + 1} attempts" if failures else "1 attempt"
                raise Unreadable(
                    f"{broken.reason} ({times})",
                    where=name,
                    hint="check the address, try again later, or raise --retries or --timeout",
                ) from None
            pause = min(_FIRST_WAIT * 2**failures, _LONGEST_WAIT)
            # random, so that requests that failed at the same time are not retried at the same time
            time.sleep(max(broken.wait, pause * random.uniform(0.5, 1.0)))  # noqa: S311
            failures += 1


def fill(thing: RemoteObject, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` from `offset`; a retry continues where the previous attempt stopped."""
    done = 0

    def attempt() -> None:
        nonlocal done
        for piece in thing.pieces(offset + done, len(buffer) - done):
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        if done < len(buffer):
            raise TransientError("the response ended early")

    patiently(thing.name, attempt, lambda: done)


class Fetch:
    """Bytes `start` to `end` of an object, in flight or received."""

    def __init__(self, thing: RemoteObject, start: int, end: int) -> None:
        self.thing, self.start, self.end = thing, start, end
        self.data = b""  # a bytearray once received
        self.touched = False
        self._error: BaseException | None = None
        self._ready = Event()

    def run(self) -> None:
        """Fetch the bytes; called by one thread."""
        data = bytearray(self.end - self.start)
        try:
            fill(self.thing, self.start, memoryview(data))
            self.data = data  # type: ignore[assignment]
        except BaseException as error:  # noqa: BLE001  raised by `wait`
            self._error = error
        self._ready.set()

    def arrived(self, data: bytes) -> None:
        """Store bytes that were fetched by other means."""
        self.data = data
        self._ready.set()

    @property
    def is_ready(self) -> bool:
        """Whether the fetch has ended, successfully or not."""
        return self._ready.is_set()

    @property
    def failed(self) -> bool:
        """Whether the fetch ended with an error."""
        return self._error is not None

    def wait(self, interrupted: Callable[[], bool]) -> bytes:
        """Wait for the bytes and return them; raise the error of the fetch."""
        while not self._ready.wait(0.2):
            if interrupted():
                raise Unreadable("the download was interrupted", where=self.thing.name)
        if isinstance(self._error, CgptError):
            raise type(self._error)(
                self._error.message, where=self._error.where, hint=self._error.hint
            )
        if self._error:
            raise self._error
        return self.data


class FetchWorkers:
    """Up to `settings.connections` fetching threads, started on demand.

    The threads are daemons, so a Ctrl-C does not wait for a server.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._open = 0  # running threads; unfinished jobs

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job`, which must not raise, in one of the threads."""
        with self._lock:
            self._open += 1
            self._queue.put(job)
            if self._threads < min(self._open, settings.connections):
                self._threads += 1
                threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                job = self._queue.get(timeout=_IDLE)
            except queue.Empty:
                with self._lock:
                    if self._queue.empty():
                        self._threads -= 1
                        return
                continue
            job()
            with self._lock:
                self._open -= 1


workers = FetchWorkers()


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R | CgptError]:
    """Return, in order, the result of `function` or its CgptError for each item."""
    todo = list(items)
    results: list[R | CgptError | BaseException] = [Unreadable("not started")] * len(todo)
    place, lock = iter(range(len(todo))), threading.Lock()
    ended = []

    def work(end: Event) -> None:
        while True:
            with lock:
                index = next(place, None)
            if index is None:
                break
            try:
                results[index] = function(todo[index])
            except BaseException as error:  # noqa: BLE001  raised below
                results[index] = error
        end.set()

    for _ in range(min(settings.connections, len(todo))):
        ended.append(Event())
        threading.Thread(target=work, args=(ended[-1],), daemon=True).start()
    for end in ended:
        while not end.wait(_LOOK):
            pass
    done: list[R | CgptError] = []
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, CgptError):
            raise result
        done.append(result)
    return done

"""A small thread pool for jobs. The first error, or a Ctrl-C, stops all threads."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from cgpt_convert.core.events import Advance, Event, untold

Job = Callable[[], object]

_DRAWN = 0.1  # seconds between progress reports
_SOON = 0.005  # seconds between checks whether a thread may begin


_MOST = 64  # threads; more make the blocks too small


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def crew_size(jobs: int) -> int:
    """Return the number of threads for `--jobs`: 0 means one per available core."""
    return min(jobs or cores(), _MOST)


class JobCancelled(Exception):  # not an error: another thread has raised one
    """Raised in a job to end it, because another job failed."""


class WorkerPool:
    """A pool of `size` threads, including the calling one.

    `told` is called with the number of units of work that are done, and only by the thread that
    calls `run`. A progress bar has its own locks, and a thread that waits for a lock that was held
    at a Ctrl-C would never end.
    """

    def __init__(self, size: int, told: Advance = untold) -> None:
        self.size = max(size, 1)
        self.lock = threading.Lock()
        self._error: BaseException | None = None
        self._stop = False
        self._is_prepared = False
        self._told = told
        self._caller = threading.get_ident()
        self._done: deque[int] = deque()  # units not reported yet

    def go_on(self) -> None:
        """Raise Stopped if the work is to end. Long jobs call this regularly."""
        if self._stop:
            raise JobCancelled

    def wait_prepared(self) -> None:
        """Wait until `prepare` is done; raise Stopped if the work is to end first."""
        while not self._is_prepared:
            self.go_on()
            time.sleep(_SOON)

    def advance(self, units: int) -> None:
        """Count units of work as done; any thread may call this."""
        self._done.append(units)
        if threading.get_ident() == self._caller:
            self._tell()

    def _tell(self) -> None:
        units = 0
        while self._done:
            units += self._done.popleft()
        if units:
            self._told(units)

    def run(self, jobs: Iterable[Job], prepare: Job) -> None:
        """Run all jobs, taking them from both ends; raise the first error.

        The calling thread takes jobs from the front, the others from the end. Put different kinds
        of jobs at different ends, so that a job that computes runs in parallel with one that
        copies. `prepare` imports what the jobs need, in the calling thread while the others already
        work, because the interpreter's import locks do not survive a Ctrl-C while two threads
        import. A job that needs these imports calls `wait_prepared`.
        """
        queue = deque(jobs)
        self._is_prepared = False
        self._caller = threading.get_ident()
        ended: list[Event] = []  # not Thread.join: a Ctrl-C in it loses the thread
        complete = False
        try:
            for _ in range(min(self.size, len(queue)) - 1):
                end = Event()
                helper = threading.Thread(target=self._help, args=(queue.pop, end), daemon=True)
                try:
                    helper.start()
                except RuntimeError:  # cannot start more threads; continue with those running
                    break
                ended.append(end)
            prepare()
            self._is_prepared = True
            self._drain(queue.popleft)
            self._wait(ended)
            self._tell()
            complete = True
        except JobCancelled:
            pass
        finally:
            self._stop = self._stop or not complete
            for end in ended:
                while not end.wait(_DRAWN):
                    pass
        if self._error:
            raise self._error

    def _wait(self, ended: list[Event]) -> None:
        """Wait for the other threads and report their progress in the meantime."""
        for end in ended:
            while not end.wait(_DRAWN):
                self._tell()

    def _help(self, take: Callable[[], Job], end: Event) -> None:
        try:
            self._drain(take)
        except JobCancelled:
            pass
        except BaseException as error:  # noqa: BLE001  whatever it is, `run` raises it
            with self.lock:
                self._error = self._error or error
            self._stop = True
        finally:
            end.set()

    def _drain(self, take: Callable[[], Job]) -> None:
        while True:
            self.go_on()
            try:
                job = take()
            except IndexError:
                return
            job()

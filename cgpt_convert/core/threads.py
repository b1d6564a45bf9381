"""Thread pools that end at once on Ctrl-C, their progress callbacks, and an event for them.

The main thread never waits for another thread without a timeout.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from cgpt_convert.core.errors import BadRequest

if TYPE_CHECKING:
    from queue import SimpleQueue

T = TypeVar("T")
R = TypeVar("R")

Job = Callable[[], object]
Advance = Callable[[int], object]  # called with the number of units completed since the last call
# called with a label and the total number of units; the context gives the callback for done units
Progress = Callable[[str, int], contextlib.AbstractContextManager[Advance]]


def untold(_units: int) -> None:
    """No-op progress callback."""


def no_progress(_label: str, _total: int) -> contextlib.AbstractContextManager[Advance]:
    """Return a context that shows no progress."""
    return contextlib.nullcontext(untold)


# called as Progress, with the unit in addition
ShowStep = Callable[[str, int, str], contextlib.AbstractContextManager[Advance]]
_SHOW_STEP: ContextVar[ShowStep | None] = ContextVar("show_step", default=None)


def show_steps(show: ShowStep) -> None:
    """Call `show` for each step that this thread runs. New threads show none."""
    _SHOW_STEP.set(show)


def step(label: str, total: int = 0, unit: str = "B") -> contextlib.AbstractContextManager[Advance]:
    """Return a context for a step that may take long; a `total` of 0 means that it is unknown."""
    show = _SHOW_STEP.get()
    return show(label, total, unit) if show else no_progress(label, total)


class Event:
    """A replacement for `threading.Event` built on a single interpreter lock.

    `threading.Event` is written in Python: a KeyboardInterrupt in the main thread can arrive after
    it has acquired the inner lock and before it releases it. A thread that calls `set` then blocks
    forever. In this class the worst case is a waiter that returns only at the end of its timeout.
    """

    def __init__(self) -> None:
        self._set = False
        self._lock = allocate_lock()
        self._lock.acquire()

    def is_set(self) -> bool:
        """Return whether `set` was called."""
        return self._set

    def set(self) -> None:
        """Set the event and wake all waiting threads."""
        self._set = True
        with contextlib.suppress(RuntimeError):  # already set
            self._lock.release()

    def wait(self, timeout: float) -> bool:
        """Return whether the event is set, after at most `timeout` seconds."""
        if not self._set and self._lock.acquire(timeout=timeout):
            with contextlib.suppress(RuntimeError):  # set again in the meantime
                self._lock.release()  # for the next waiter
        return self._set


_DRAWN = 0.1  # seconds between progress reports
_SOON = 0.005  # seconds between checks whether a thread may begin
_MOST = 64  # threads; more make the blocks too small


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_count(jobs: int) -> int:
    """Return the number of threads for `--jobs`: 0 means one per available core.

    Raises BadRequest for a negative number.
    """
    if jobs < 0:
        raise BadRequest(f"{jobs} is not a number of threads", hint="0 is one per CPU core")
    return min(jobs or cores(), _MOST)


class JobCancelled(Exception):  # not an error: another thread raised the error
    """Raised in a job to end it, because another job failed."""


class WorkerPool:
    """A pool of `size` threads, including the calling one.

    `advance` is called with the number of units of work that are done, and only by the thread that
    calls `run`. A progress bar has its own locks, and a thread that waits for a lock that was held
    at a Ctrl-C would never end.
    """

    def __init__(self, size: int, advance: Advance = untold) -> None:
        self.size = max(size, 1)
        self.lock = threading.Lock()
        self._error: BaseException | None = None
        self._stop = False
        self._is_prepared = False
        self._callback = advance
        self._caller = threading.get_ident()
        self._done: deque[int] = deque()  # units not reported yet

    def go_on(self) -> None:
        """Raise JobCancelled if the work is to end. Long jobs call this regularly."""
        if self._stop:
            raise JobCancelled

    def wait_prepared(self) -> None:
        """Wait until `prepare` is done; raise JobCancelled if the work is to end first."""
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
            self._callback(units)

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
        except BaseException as error:  # noqa: BLE001  `run` raises it
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


def in_order(function: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """Yield the result of `function` for each item, computed by several threads; raise its error.

    Not an executor: at a Ctrl-C that waits for the running calls, and again when the interpreter
    ends. These threads are daemons, and the caller only waits for a queue.
    """
    if threads < _SEVERAL:
        yield from map(function, items)
        return
    from queue import SimpleQueue  # imported here because `inspect` does not need it

    todo = deque(enumerate(items))
    ended: SimpleQueue[_Ended[R]] = SimpleQueue()
    for _ in range(threads):
        threading.Thread(target=_work, args=(function, todo, ended), daemon=True).start()
    early: dict[int, list[R]] = {}
    try:
        for number in range(len(items)):
            while number not in early:
                early.update([_next(ended)])
            yield from early.pop(number)
    finally:
        todo.clear()


_SEVERAL = 2
_Ended = tuple[int, list[R], BaseException | None]  # an item's number, its result or its error


def _work(
    function: Callable[[T], R], todo: deque[tuple[int, T]], ended: SimpleQueue[_Ended[R]]
) -> None:
    while todo:
        try:
            number, item = todo.popleft()
        except IndexError:  # another thread took the last one
            return
        try:
            ended.put((number, [function(item)], None))
        except BaseException as error:  # noqa: BLE001  raised in the caller
            ended.put((number, [], error))


def _next(ended: SimpleQueue[_Ended[R]]) -> tuple[int, list[R]]:
    """Wait for the next item that has ended; raise its error."""
    from queue import Empty

    while True:
        try:
            number, result, error = ended.get(timeout=_DRAWN)
        except Empty:  # on some systems a wait without a timeout cannot be interrupted
            continue
        if error is not None:
            raise error
        return number, result


_Done = tuple[int, Any, BaseException | None]
_Job = tuple[Callable[[Any], Any], "deque[tuple[int, Any]]", "SimpleQueue[_Done]"]


class ThreadPool:
    """A pool of `threads` threads in addition to the caller's. They end with the pool.

    Handing over a part takes about 25 us, half of the time of `concurrent.futures`; every product
    of a token is shared this way. The caller also does the parts that no thread has started when it
    has finished its own, for example because other programs use the cores.
    """

    def __init__(self, threads: int) -> None:
        from queue import SimpleQueue

        self._new_queue = SimpleQueue
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        for _ in range(threads):
            threading.Thread(target=_serve, args=(self._inbox,), daemon=True).start()
        weakref.finalize(self, _dismiss, self._inbox, threads)

    def map(self, work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
        """Return the results of `work` for each part, in order; the caller's thread also works.

        Raises the error of `work` after all parts have ended.
        """
        todo = deque(enumerate(parts))
        outbox: SimpleQueue[_Done] = self._new_queue()
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

"""An event that is safe under Ctrl-C, and the type of progress callbacks."""

from __future__ import annotations

import contextlib
from _thread import allocate_lock
from collections.abc import Callable

Advance = Callable[[int], object]  # called with the number of units completed since the last call
# called with a label and the total number of units; gives what is told of those that are done
Progress = Callable[[str, int], contextlib.AbstractContextManager[Advance]]


def untold(_units: int) -> None:
    """No-op progress callback."""


def no_progress(_label: str, _total: int) -> contextlib.AbstractContextManager[Advance]:
    """Return a context that shows no progress."""
    return contextlib.nullcontext(untold)


class Event:
    """A replacement for `threading.Event` built on a single interpreter lock.

    `threading.Event` is written in Python: a KeyboardInterrupt in the main thread can arrive after
    it has acquired the inner lock and before it releases it. A thread that calls `set` then blocks
    for ever. In this class the worst case is a waiter that returns only at the end of its timeout.
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

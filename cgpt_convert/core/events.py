"""Threads: an event that a Ctrl-C cannot break, and what progress is told to."""

from __future__ import annotations

import contextlib
from _thread import allocate_lock
from collections.abc import Callable

Advance = Callable[[int], object]  # called with the number of further units that are done


def untold(_units: int) -> None:
    """No-op progress callback."""


class Event:
    """As `threading.Event`, made of one lock of the interpreter's own.

    `threading.Event` is written in Python: a KeyboardInterrupt in the main thread can come when it
    has taken the inner lock and before it can give it back. A thread that calls `set` then waits
    for ever. Here the worst is that a waiter notices at the end of its timeout.
    """

    def __init__(self) -> None:
        self._set = False
        self._lock = allocate_lock()
        self._lock.acquire()

    def is_set(self) -> bool:
        """Return whether `set` was called."""
        return self._set

    def set(self) -> None:
        """Let all that wait go on."""
        self._set = True
        with contextlib.suppress(RuntimeError):  # it was set already
            self._lock.release()

    def wait(self, timeout: float) -> bool:
        """Return whether it is set, at the latest after `timeout` seconds."""
        if not self._set and self._lock.acquire(timeout=timeout):
            with contextlib.suppress(RuntimeError):  # set once more meanwhile
                self._lock.release()  # for the next that waits
        return self._set

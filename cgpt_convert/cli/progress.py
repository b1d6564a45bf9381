"""A progress bar on standard error, if it is a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(label: str, total: int, unit: str = "B") -> Iterator[Callable[[int], object]]:
    """Yield a function that counts further units of `total`, for use in this thread only.

    tqdm draws under locks. Other threads must not wait for them, since a KeyboardInterrupt can
    leave one locked.
    """
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no separate drawing thread
    tqdm.set_lock(threading.RLock())  # a thread lock suffices for one process
    drawing = threading.get_ident()
    with tqdm(
        total=total, desc=label, unit=unit, unit_scale=True, leave=False, delay=0.5, mininterval=0.1
    ) as bar:

        def advance(done: int) -> None:
            if threading.get_ident() != drawing:
                raise RuntimeError("progress is told by the thread that began it")
            bar.update(done)

        yield advance

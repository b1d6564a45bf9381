"""A progress bar on standard error, if that is a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(label: str, total: int, unit: str = "B") -> Iterator[Callable[[int], object]]:
    """Give a function that counts further units, out of `total`; for this thread only.

    tqdm draws under locks. No other thread may ever wait for one: a Ctrl-C can leave it taken.
    """
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread of its own that draws
    tqdm.set_lock(threading.RLock())  # not one of several processes: we are one
    drawing = threading.get_ident()
    with tqdm(
        total=total, desc=label, unit=unit, unit_scale=True, leave=False, delay=0.5, mininterval=0.1
    ) as bar:

        def advance(done: int) -> None:
            if threading.get_ident() != drawing:
                raise RuntimeError("progress is told by the thread that began it")
            bar.update(done)

        yield advance

"""A progress bar on standard error, if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(label: str, nbytes: int) -> Iterator[Callable[[int], object]]:
    """A function to tell of further bytes done, out of `nbytes`."""
    if not sys.stderr.isatty():
        yield lambda _nbytes: None
        return
    from tqdm import tqdm

    with tqdm(
        total=nbytes, desc=label, unit="B", unit_scale=True, leave=False, delay=0.5, mininterval=0.1
    ) as bar:
        yield bar.update

"""A progress bar on standard error, if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(label: str, total: int, unit: str = "B") -> Iterator[Callable[[int], object]]:
    """A function to tell of further units done, out of `total`."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from tqdm import tqdm

    with tqdm(
        total=total, desc=label, unit=unit, unit_scale=True, leave=False, delay=0.5, mininterval=0.1
    ) as bar:
        yield bar.update

"""Recognise raw tensor files that `extract` wrote, by the mapping beside them."""

from __future__ import annotations

import os
from functools import lru_cache

from cgpt_convert.core.errors import CgptError
from cgpt_convert.sources.paths import is_url

RAW = "file of raw tensors"  # like the names in `detect.Kind`

_MAPPING = "mapping.json"
_DEEPEST = 3  # a file is in the folder of its mapping, in a shard's folder, or among its arrays


def is_raw(path: str) -> bool:
    """Return whether a mapping up to three folders up lists the file as tensor data."""
    if is_url(path):
        return False
    folder, name = os.path.split(os.path.abspath(path))
    for _ in range(_DEEPEST):
        if name in _named_in(folder):
            return True
        folder, _, last = folder.rpartition(os.sep)
        name = f"{last}/{name}"
    return False


def _named_in(folder: str) -> frozenset[str]:
    """Return the files listed in the folder's mapping; empty without a readable mapping."""
    try:
        status = os.stat(os.path.join(folder, _MAPPING))
    except OSError:
        return frozenset()
    return _listed(folder, (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=64)
def _listed(folder: str, _state: tuple[int, ...]) -> frozenset[str]:
    """Return the same, cached while the mapping file does not change."""
    from cgpt_convert.formats.raw import writer

    try:
        return writer.files(folder)
    except CgptError:
        return frozenset()

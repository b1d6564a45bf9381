"""The raw tensors of a folder that `extract` wrote: not their content tells, but its mapping."""

from __future__ import annotations

import os
from functools import lru_cache

from cgpt_convert.core.errors import CgptError
from cgpt_convert.sources.paths import is_url

RAW = "file of raw tensors"  # as `sniff.Kind` names the other kinds

_MAPPING = "mapping.json"
_DEEPEST = 3  # a file lies in the folder of its mapping, in that of a shard, or among its arrays


def is_raw(path: str) -> bool:
    """Does a mapping beside the file, or a little above it, name it as what tensors lie in?"""
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
    """The files that the folder's mapping names; none if it has no mapping that can be read."""
    try:
        status = os.stat(os.path.join(folder, _MAPPING))
    except OSError:
        return frozenset()
    return _listed(folder, (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=64)
def _listed(folder: str, _state: tuple[int, ...]) -> frozenset[str]:
    """The same, read once for all files of a mapping that does not change."""
    from cgpt_convert.formats.raw import writer as parameters

    try:
        return parameters.files(folder)
    except CgptError:
        return frozenset()

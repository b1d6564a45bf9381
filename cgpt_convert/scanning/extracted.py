"""The raw tensors of a folder that `extract` wrote: not their content tells, but its mapping."""

from __future__ import annotations

import os
from functools import lru_cache

from cgpt_convert.errors import CgptError
from cgpt_convert.places import is_url

RAW = "file of raw tensors"  # as `sniff.Kind` names the other kinds

_MAPPING = "mapping.json"
_DEEPEST = 3  # a file lies in the folder of its mapping, in that of a shard, or among its arrays


def is_raw(path: str) -> bool:
    """Does a mapping beside the file, or a little above it, name it as what tensors lie in?"""
    if is_url(path):
        return False
    folder, name = os.path.split(os.path.abspath(path))
    for _ in range(_DEEPEST):
        if name in _listed(folder):
            return True
        folder, _, last = folder.rpartition(os.sep)
        name = f"{last}/{name}"
    return False


@lru_cache(maxsize=64)
def _listed(folder: str) -> frozenset[str]:
    """The files that the folder's mapping names; none if it has no mapping that can be read."""
    if not os.path.isfile(os.path.join(folder, _MAPPING)):
        return frozenset()
    from cgpt_convert.formats import parameters

    try:
        return parameters.files(folder)
    except CgptError:
        return frozenset()

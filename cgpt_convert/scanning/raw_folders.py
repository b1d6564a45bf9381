"""Recognise raw tensor files, such as `extract` writes, by the index beside them."""

from __future__ import annotations

import os
from functools import lru_cache

from cgpt_convert.core.errors import CgptError
from cgpt_convert.formats.registry import built_in, by_name
from cgpt_convert.sources.paths import is_url

RAW = "file of raw tensors"  # like the names of kinds of files

_DEEPEST = 3  # a file is in the folder of its index, in a shard's folder, or among its arrays


def is_raw(path: str) -> bool:
    """Return whether an index up to three folders up lists the file as tensor data."""
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
    """Return the files that an index in the folder lists; empty without a readable one."""
    names: frozenset[str] = frozenset()
    for form in built_in():
        if form.tensor_files is None:
            continue
        try:
            status = os.stat(os.path.join(folder, form.folder_index))
        except OSError:
            continue
        names |= _listed(form.name, folder, (status.st_ino, status.st_mtime_ns, status.st_size))
    return names


@lru_cache(maxsize=64)
def _listed(name: str, folder: str, _state: tuple[int, ...]) -> frozenset[str]:
    """Return what the index of that format lists, cached while the index does not change."""
    form = by_name(name)
    try:
        return form.tensor_files(folder) if form.tensor_files else frozenset()
    except CgptError:
        return frozenset()

"""Expand files, folders (recursively) and patterns into the files to scan."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from cgpt_convert.core.errors import BadRequest, CgptError
from cgpt_convert.formats.open import hub_url
from cgpt_convert.sources.local import unreadable
from cgpt_convert.sources.paths import is_url

_MAGIC = frozenset("*?[")


def files(paths: Iterable[str]) -> Iterator[str | CgptError]:
    """Yield the files in order, or an error for a folder that cannot be listed.

    Links are followed, since model caches use them; each folder is entered once. Devices and pipes
    in folders are skipped. Raises BadRequest for a missing path and for a pattern without matches.
    """
    seen: set[tuple[int, int]] = set()
    named = [found_path for path in paths for found_path in _expanded(path)]
    for path in named:
        if os.path.isdir(path):
            yield from _below(path, seen)
        else:
            yield path


def _expanded(path: str) -> list[str]:
    if is_url(path) or os.path.lexists(path):
        return [path]
    if not _MAGIC.isdisjoint(path):
        import glob

        matching = sorted(glob.glob(path, recursive=True))
        if matching:
            return matching
        raise BadRequest("no file matches this pattern", where=path)
    url = hub_url(path)
    hint = f"for a file on the Hugging Face Hub, write {url}/FILE" if url else ""
    raise BadRequest("no such file or folder", where=path, hint=hint)


def _below(folder: str, seen: set[tuple[int, int]]) -> Iterator[str | CgptError]:
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        inside = sorted(os.listdir(folder))
    except OSError as error:
        yield unreadable(error, folder)
        return
    for name in inside:
        path = os.path.join(folder, name)
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            yield unreadable(error, path)
            continue
        if stat.S_ISDIR(mode):
            yield from _below(path, seen)
        elif stat.S_ISREG(mode):
            yield path

"""What a path names: a file here, or a URL. What reads remote files is imported for URLs only."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cgpt_convert.core.errors import BadRequest
from cgpt_convert.sources.local import File, LocalFile, Source, unreadable


def is_url(path: str) -> bool:
    """Does `path` begin with a scheme and `://`?"""
    scheme, found, _ = path.partition("://")
    return bool(found) and scheme[:1].isalpha() and scheme.replace("+", "").isalnum()


def join(folder: str, path: str) -> str:
    """What names the file at `path`, a file's own path, inside the folder.

    In a URL for HTTP some characters mean something else; of a file's name they are escaped.
    """
    if folder.partition("://")[0].lower() in ("http", "https"):
        from urllib.parse import quote

        path = quote(path)
    return os.path.join(folder, path)


def open_source(path: str) -> File:
    """The bytes of the file at `path`; BadRequest if there is none."""
    if is_url(path):
        from cgpt_convert.sources.remote.open import open_remote

        return open_remote(path)
    return LocalFile(path)


def open_all(paths: Sequence[str]) -> list[File | None]:
    """The bytes of files that are looked into later, None for each that is not there."""
    if paths and is_url(paths[0]):
        from cgpt_convert.sources.remote.open import open_several

        return open_several(paths)
    return [LocalFile(path) if os.path.isfile(path) else None for path in paths]


def listing(path: str) -> list[str] | None:
    """The names in the folder at `path`, sorted; None where it cannot be listed, as by HTTP."""
    if is_url(path):
        from cgpt_convert.sources.remote.open import look

        inside = look(path).inside
        return None if inside is None else sorted(inside)
    try:
        return sorted(os.listdir(path))
    except NotADirectoryError as error:
        raise BadRequest("not a folder", where=path) from error
    except OSError as error:
        raise unreadable(error, path) from error


def find(path: str) -> Source | None:
    """The bytes of a file that may lie beside weights; None if nothing is there."""
    if is_url(path):
        from cgpt_convert.sources.remote.open import find_remote

        return find_remote(path)
    return LocalFile(path) if os.path.lexists(path) else None


def is_file(path: str) -> bool:
    """Is there a file?"""
    return find(path) is not None if is_url(path) else os.path.isfile(path)


def named(path: str) -> str:
    """What to call `path` from now on: of a URL, what has no secrets in it."""
    if not is_url(path):
        return path
    from cgpt_convert.sources.remote.urls import name_of

    return name_of(path)

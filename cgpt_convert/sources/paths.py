"""Paths of local files and URLs. The modules for remote files are imported for URLs only."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cgpt_convert.core.errors import BadRequest
from cgpt_convert.sources.local import LocalFile, OpenSource, Source, unreadable


def is_url(path: str) -> bool:
    """Return whether `path` begins with a scheme and `://`."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme[:1].isalpha() and scheme.replace("+", "").isalnum()


def join(folder: str, path: str) -> str:
    """Return the path or URL of the file `path` inside `folder`.

    In an HTTP URL, characters of the file name that have a special meaning are escaped.
    """
    if folder.partition("://")[0].lower() in ("http", "https"):
        from urllib.parse import quote

        path = quote(path)
    return os.path.join(folder, path)


def open_source(path: str) -> OpenSource:
    """Open the file at `path`; raise BadRequest if it does not exist."""
    if is_url(path):
        from cgpt_convert.sources.remote.open_urls import open_remote

        return open_remote(path)
    return LocalFile(path)


def open_all(paths: Sequence[str]) -> list[OpenSource | None]:
    """Open files that are read later; None for each that does not exist."""
    if paths and is_url(paths[0]):
        from cgpt_convert.sources.remote.open_urls import open_several

        return open_several(paths)
    return [LocalFile(path) if os.path.isfile(path) else None for path in paths]


def listing(path: str) -> list[str] | None:
    """Return the sorted names in a folder; None if it cannot be listed, as over HTTP."""
    if is_url(path):
        from cgpt_convert.sources.remote.open_urls import look

        inside = look(path).inside
        return None if inside is None else sorted(inside)
    try:
        return sorted(os.listdir(path))
    except NotADirectoryError as error:
        raise BadRequest("the path is not a folder", where=path) from error
    except OSError as error:
        raise unreadable(error, path) from error


def find(path: str) -> Source | None:
    """Open an optional file next to the weights; None if it does not exist."""
    if is_url(path):
        from cgpt_convert.sources.remote.open_urls import find_remote

        return find_remote(path)
    return LocalFile(path) if os.path.lexists(path) else None


def is_file(path: str) -> bool:
    """Return whether a file exists at `path`."""
    return find(path) is not None if is_url(path) else os.path.isfile(path)


def named(path: str) -> str:
    """Return the name to show for `path`: for a URL, one without secrets."""
    if not is_url(path):
        return path
    from cgpt_convert.sources.remote.urls import name_of

    return name_of(path)

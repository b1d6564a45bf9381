"""Opening of remote files, and listing of remote folders."""

from __future__ import annotations

import netrc
import posixpath
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from cgpt_convert.core.errors import CgptError
from cgpt_convert.sources.local import OpenSource, Source
from cgpt_convert.sources.remote.download import DownloadedFile
from cgpt_convert.sources.remote.range_cache import RemoteFile
from cgpt_convert.sources.remote.remote_object import NotFound, RemoteObject
from cgpt_convert.sources.remote.remote_settings import settings
from cgpt_convert.sources.remote.retry import in_parallel
from cgpt_convert.sources.remote.urls import check_installed, url_of

_HTTP = ("http", "https")
_HEAD_OF_RAW = 4 << 10  # bytes: enough for a bias vector


def open_remote(name: str) -> OpenSource:
    """Open the object `name`; raise NotFound, a BadRequest, if it does not exist."""
    thing = _object(name)
    return DownloadedFile(thing) if settings.download else RemoteFile(thing)


def open_several(names: Sequence[str]) -> list[OpenSource | None]:
    """Open raw data files; None for each that does not exist. Little is fetched initially."""

    def opened(name: str) -> OpenSource:
        thing = _object(name)
        return DownloadedFile(thing) if settings.download else RemoteFile(thing, _HEAD_OF_RAW)

    return [_or_none(each) for each in in_parallel(opened, names)]


def _or_none(opened: OpenSource | CgptError) -> OpenSource | None:
    if isinstance(opened, NotFound):
        return None
    if isinstance(opened, CgptError):
        raise opened
    return opened


def find_remote(name: str) -> Source | None:
    """Open an optional file next to the weights; None if it does not exist or is not accessible.

    Stores respond with 403 for missing files if listing is not allowed, and some sites with a web
    page.
    """
    thing = _object(name)
    from cgpt_convert.sources.remote.http import AccessDenied, HttpObject

    try:
        source = RemoteFile(thing)
    except (NotFound, AccessDenied):
        return None
    return None if isinstance(thing, HttpObject) and thing.is_page else source


class RemoteEntry(NamedTuple):
    """A file, or a folder with its known contents."""

    name: str  # pinned to one version if the store supports it
    is_folder: bool = False
    inside: tuple[str, ...] | None = None  # None if it cannot be listed, as over HTTP


def look(name: str) -> RemoteEntry:
    """Return whether `name` is a file or a folder, with as few requests as the store allows."""
    check_installed(name)
    scheme = _scheme(name)
    if scheme in _HTTP:
        return RemoteEntry(name, is_folder=name.endswith("/") or not urlsplit(name).path)
    if scheme == "hf":
        from cgpt_convert.sources.remote import hub

        fixed, files = hub.pinned(name)
        path = hub.parsed(name).path
        prefix = f"{path}/" if path else ""
        below = [f.removeprefix(prefix) for f in files if f.startswith(prefix)]
        is_folder = not path or bool(below)
        return RemoteEntry(fixed, is_folder, tuple(f for f in below if "/" not in f))
    from cgpt_convert.sources.remote import fsspec_store

    url = url_of(name)
    if "." in posixpath.basename(name) or not fsspec_store.is_folder(name, url):
        return RemoteEntry(name)
    return RemoteEntry(name, is_folder=True, inside=tuple(fsspec_store.listed(name, url)))


def _scheme(name: str) -> str:
    return name.partition("://")[0].lower()


def _object(name: str) -> RemoteObject:
    check_installed(name)
    scheme = _scheme(name)
    if scheme == "hf":
        from cgpt_convert.sources.remote.hub import hub_object

        return hub_object(name)
    if scheme in _HTTP:
        return _http_object(name)
    from cgpt_convert.sources.remote.fsspec_store import store_object

    return store_object(name, url_of(name))


def _http_object(name: str) -> RemoteObject:
    import urllib3

    from cgpt_convert.sources.remote.http import HttpObject, HttpRequest

    scheme, netloc, path, query, _ = urlsplit(url_of(name))
    user, _, host = netloc.rpartition("@")
    bare = urlunsplit((scheme, host, quote(path, safe="/%:@!$&'()*+,;=~"), query, ""))
    user = unquote(user) or _from_netrc(urlsplit(bare).hostname or "")
    headers = urllib3.make_headers(basic_auth=user) if user else {}
    request = HttpRequest(bare, dict(headers))
    return HttpObject(name, lambda: request)


def _from_netrc(host: str) -> str:
    """Return user:password for the host from ~/.netrc; empty if there is none."""
    try:
        login = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return ""
    return f"{login[0]}:{login[2]}" if login else ""

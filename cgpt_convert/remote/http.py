"""An object behind HTTP, in ranges (RFC 9110, sections 8.8, 13.1.5 and 14), by urllib3.

Every request for a range says which version it is meant of (If-Range), and every answer is
compared with the first: bytes of two versions are never mixed.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import (
    HTTPError,
    LocationValueError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ResponseError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as NothingCame

from cgpt_convert import __version__
from cgpt_convert.errors import BadRequest, CgptError, Unreadable, Unsupported
from cgpt_convert.remote.objects import HEAD, SMALL, Broken, Opened, absent, changed, no_ranges
from cgpt_convert.remote.traffic import settings, traffic

_PIECE = 64 << 10
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_GONE = (404, 410)
_REFUSED = (401, 403)
_REDIRECTS = 10
_LONGEST_WAIT = 60.0  # of those that a server may ask for


class Request(NamedTuple):
    """Where an object is, now, and what to say to be let in."""

    url: str
    headers: Mapping[str, str] = {}


class _Version(NamedTuple):
    """What tells one version of an object from another (RFC 9110, 8.8)."""

    etag: str
    modified: str
    nbytes: int

    @property
    def if_range(self) -> str:
        """The field's value; empty where only a weak validator is there (13.1.5)."""
        return "" if self.etag.startswith("W/") else self.etag or self.modified


class HttpObject:
    """A URL. `locate` gives it, and again when what it gave is no longer accepted."""

    def __init__(self, name: str, locate: Callable[[], Request]) -> None:
        self.name = name
        self._locate = locate
        self._request = locate()
        self._version: _Version | None = None

    def open(self, head: int = HEAD) -> Opened:
        """Size and first bytes, by asking for those."""
        with self._get(0, head - 1) as answer:
            if answer.status == 416 and _total(answer) == 0:  # noqa: PLR2004  nothing to range over
                self._version = _version(answer, 0)
                return Opened(0, b"")
            nbytes = _total(answer) if answer.status == 206 else _length(answer)  # noqa: PLR2004
            if answer.status == 200 and (nbytes is None or nbytes > SMALL):  # noqa: PLR2004
                raise no_ranges(self.name)
            if nbytes is None:
                raise Unsupported("the server does not tell the size", where=self.name)
            data = b"".join(_body(answer))
            if len(data) < min(head, nbytes):
                raise Broken("the answer ended early")
            self._version = _version(answer, nbytes)
            return Opened(nbytes, data)

    @property
    def is_page(self) -> bool:
        """Was it a web page that came? Some servers answer with one for whatever is not there."""
        return self._kind == "text/html"

    _kind = ""

    def pieces(self, offset: int, nbytes: int) -> Iterator[bytes]:
        """The bytes as they arrive."""
        with self._get(offset, offset + nbytes - 1) as answer:
            self._compare(answer)
            if answer.status != 206:  # noqa: PLR2004
                raise Unreadable("the server no longer serves byte ranges", where=self.name)
            if _first(answer) != offset:
                raise Unreadable("the server sent another range", where=self.name)
            yield from _body(answer)

    def stream(self, offset: int) -> tuple[int, int | None, Iterator[bytes]]:
        """All the bytes from `offset`, or from 0 if the server must."""
        stack = contextlib.ExitStack()
        answer = stack.enter_context(self._get(offset, None))
        partial = answer.status == 206  # noqa: PLR2004
        nbytes = _total(answer) if partial else _length(answer)
        if self._version is None and nbytes is not None:
            self._version = _version(answer, nbytes)
        elif self._version is not None:
            self._compare(answer)

        def body() -> Iterator[bytes]:
            with stack:
                yield from _body(answer)

        return (_first(answer) if partial else 0), nbytes, body()

    def check_unchanged(self) -> None:
        """Nothing to ask: each answer was of the version that was opened."""

    def _compare(self, answer: urllib3.BaseHTTPResponse) -> None:
        then = self._version
        nbytes = _total(answer) if answer.status in (206, 416) else _length(answer)
        now = _version(answer, -1 if nbytes is None else nbytes)
        if then is None:
            return
        if then.etag and now.etag:
            same = then.etag == now.etag
        else:
            same = not (then.modified and now.modified) or then.modified == now.modified
        if not same or now.nbytes not in (then.nbytes, -1):
            raise changed(self.name)

    @contextlib.contextmanager
    def _get(self, first: int, last: int | None) -> Iterator[urllib3.BaseHTTPResponse]:
        answer = self._send(first, last)
        if answer.status in _REFUSED and self._version:  # what is signed, or led to, expires
            answer.close()
            self._request = self._locate()
            answer = self._send(first, last)
        try:
            self._check_status(answer)
            yield answer
        except (HTTPError, OSError) as error:
            raise _broken(error, self.name) from None
        finally:
            # what is left of a body that was read whole is nothing, so the connection is kept
            answer.release_conn() if answer.length_remaining == 0 else answer.close()

    def _send(self, first: int, last: int | None) -> urllib3.BaseHTTPResponse:
        url, headers = self._request
        ask = {"Accept-Encoding": "identity", "User-Agent": f"cgpt-convert/{__version__}"}
        if first or last is not None:
            ask["Range"] = f"bytes={first}-{'' if last is None else last}"
            if self._version is not None and self._version.if_range:
                ask["If-Range"] = self._version.if_range
        try:
            answer = _pool(url).request(
                "GET",
                url,
                headers={**headers, **ask},
                preload_content=False,
                decode_content=False,
                redirect=True,
                retries=urllib3.Retry(_REDIRECTS, connect=0, read=0, status=0, other=0),
                timeout=settings.timeout,
            )
        except (HTTPError, OSError) as error:
            traffic.add(requests=1)
            raise _broken(error, self.name) from None
        hops = answer.retries.history if answer.retries else ()
        traffic.add(requests=1 + len(hops))
        self._kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        self._shorten(url, hops)
        return answer

    def _shorten(self, url: str, hops: tuple[urllib3.util.retry.RequestHistory, ...]) -> None:
        """Ask at once where the redirects led to; what lets in here is not said there."""
        target = hops[-1].redirect_location if hops else None
        if target and urlsplit(target).netloc not in ("", urlsplit(url).netloc):
            self._request = Request(target)

    def _check_status(self, answer: urllib3.BaseHTTPResponse) -> None:
        status = answer.status
        if status in (200, 206):
            coding = answer.headers.get("Content-Encoding", "identity")
            if coding != "identity":
                raise Unsupported(f"the server sends it {coding}-encoded", where=self.name)
        elif status in _PASSING:
            raise Broken(f"the server answers {_told(answer)}", _wait(answer))
        elif self._version is not None and status in (416, *_GONE):
            raise changed(self.name)
        elif status in _GONE:
            raise absent(self.name)
        elif status in _REFUSED:
            raise Refused(
                f"the server refuses it: {_told(answer)}",
                where=self.name,
                hint="it wants credentials that have access; docs/remote.md tells where they go",
            )
        elif not (status == 416 and _total(answer) == 0):  # noqa: PLR2004
            raise Unreadable(f"the server answers {_told(answer)}", where=self.name)


class Refused(Unreadable):
    """The server wants other credentials, or does not want us."""


def _told(answer: urllib3.BaseHTTPResponse) -> str:
    return f"{answer.status} {answer.reason or ''}".strip()


def _wait(answer: urllib3.BaseHTTPResponse) -> float:
    """The seconds of Retry-After (RFC 9110, 10.2.3); 0 without."""
    text = answer.headers.get("Retry-After", "")
    if text.isdigit():
        return min(float(text), _LONGEST_WAIT)
    with contextlib.suppress(ValueError):
        ahead = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        return min(max(ahead, 0.0), _LONGEST_WAIT)
    return 0.0


def _body(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    while piece := answer.read(_PIECE):
        traffic.add(nbytes=len(piece))
        yield piece


def _range(answer: urllib3.BaseHTTPResponse) -> re.Match[str] | None:
    """First byte and size, of Content-Range (RFC 9110, 14.4)."""
    text = answer.headers.get("Content-Range", "")
    return re.fullmatch(r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]+|\*)", text.strip())


def _total(answer: urllib3.BaseHTTPResponse) -> int | None:
    found = _range(answer)
    return int(found[2]) if found and found[2] != "*" else None


def _first(answer: urllib3.BaseHTTPResponse) -> int:
    found = _range(answer)
    return int(found[1]) if found and found[1] else -1


def _length(answer: urllib3.BaseHTTPResponse) -> int | None:
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _version(answer: urllib3.BaseHTTPResponse, nbytes: int) -> _Version:
    headers = answer.headers
    return _Version(headers.get("ETag", ""), headers.get("Last-Modified", ""), nbytes)


def _broken(error: Exception, name: str) -> Broken | CgptError:
    """What to do about an error of urllib3's, whose own text has the URL, secrets and all."""
    reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    final: tuple[tuple[type[Exception], type[CgptError], str], ...] = (
        (LocationValueError, BadRequest, "not a URL that can be asked for"),
        (SSLError, Unreadable, "the server's certificate or TLS is not accepted"),
        (ResponseError, Unreadable, f"more than {_REDIRECTS} redirects"),
    )
    for kind, becomes, told in final:
        if isinstance(reason, kind):
            return becomes(told, where=name)
    if isinstance(reason, NameResolutionError):
        return Broken("the host's name cannot be resolved")
    if isinstance(reason, NewConnectionError):
        return Broken("no connection to the host")
    if isinstance(reason, (NothingCame, TimeoutError)):
        return Broken(f"nothing came for {settings.timeout:g} seconds")
    return Broken("the connection was cut")


@functools.cache
def _manager(proxy: str) -> urllib3.PoolManager:
    kept = 2 * settings.connections
    if not proxy:
        return urllib3.PoolManager(maxsize=kept)
    user = urlsplit(proxy).netloc.rpartition("@")[0]
    headers = urllib3.make_headers(proxy_basic_auth=user) if user else None
    return urllib3.ProxyManager(proxy, maxsize=kept, proxy_headers=headers)


def _pool(url: str) -> urllib3.PoolManager:
    """The connections for `url`, through the proxy that the environment names for it."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme, "")
    return _manager("" if not proxy or proxy_bypass(parts.hostname or "") else proxy)

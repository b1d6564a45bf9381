"""HTTP objects read in ranges (RFC 9110, sections 8.8, 13.1.5 and 14), using urllib3.

Every range request names the expected version (If-Range), and every response is compared with the
first, so bytes of two versions are never mixed. A server is not trusted to stop: no more is read
than was requested, and every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import email.utils
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    HTTPError,
    InvalidHeader,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as NothingCame

from cgpt_convert import __version__
from cgpt_convert.core.errors import BadRequest, CgptError, Unreadable, Unsupported
from cgpt_convert.core.text import quoted
from cgpt_convert.sources.remote.connections import CLOSED, Deadline, Dropped, get
from cgpt_convert.sources.remote.remote_object import (
    CREDENTIALS,
    DOWNLOAD,
    HEAD,
    SMALL,
    FirstResponse,
    TransientError,
    absent,
    changed,
    no_ranges,
)
from cgpt_convert.sources.remote.remote_settings import settings, traffic

_PIECE = 64 << 10
PASSING = (408, 425, 429, 500, 502, 503, 504)
_GONE = (404, 410)
_OTHER_RANGE = "the server sent a different byte range than requested"
_ELSEWHERE = "download the file with another program and pass its path"
_DENIED = (401, 403)
_REDIRECTS = 10
_REDIRECTING = (301, 302, 303, 307, 308)
_LONGEST_WAIT = 60.0  # longest delay that a server may request
_SLOWEST = 1 << 10  # bytes a second, on average over `settings.timeout`
_UNANNOUNCED = 4 << 30  # limit for a body of unannounced size
_DIGITS = 18  # of a number in a header: an exabyte, below the limits of int() and of files
_CREDENTIALS = ("authorization", "cookie", "proxy-authorization")


class HttpRequest(NamedTuple):
    """The current URL of an object and the headers that authorise access."""

    url: str
    headers: Mapping[str, str] = {}


class _Version(NamedTuple):
    """The validators that identify a version of an object (RFC 9110, 8.8)."""

    etag: str
    modified: str
    nbytes: int

    @property
    def if_range(self) -> str:
        """The value of If-Range; empty if there is only a weak validator (13.1.5)."""
        return "" if self.etag.startswith("W/") else self.etag or self.modified


class HttpObject:
    """An object with a URL. `locate` returns the URL, and is called again if it expires."""

    def __init__(self, name: str, locate: Callable[[], HttpRequest]) -> None:
        self.name = name
        self._locate = locate
        self._request = locate()
        self._version: _Version | None = None

    def open(self, head: int = HEAD) -> FirstResponse:
        """Return the size and the first bytes, using a request for those bytes."""
        with self._get(0, head - 1) as answer:
            if answer.status == 416 and _total(answer) == 0:  # noqa: PLR2004  nothing to range over
                self._version = _version(answer, 0)
                return FirstResponse(0, b"")
            nbytes = _total(answer) if answer.status == 206 else _length(answer)  # noqa: PLR2004
            if answer.status == 200 and (nbytes is None or nbytes > SMALL):  # noqa: PLR2004
                raise no_ranges(self.name)
            if nbytes is None:
                message = "the server does not report the size of the file"
                raise Unsupported(message, where=self.name, hint=DOWNLOAD)
            wanted = min(head, nbytes) if answer.status == 206 else nbytes  # noqa: PLR2004
            self._check_range(answer, 0, wanted)
            data = b"".join(answer.body(wanted))
            if len(data) < wanted:
                raise TransientError("the response ended early")
            self._version = _version(answer, nbytes)
            return FirstResponse(nbytes, data)

    @property
    def is_page(self) -> bool:
        """Whether the response was a web page, as some servers send for missing files."""
        return self._kind == "text/html"

    _kind = ""

    def pieces(self, offset: int, nbytes: int) -> Iterator[bytes]:
        """Yield the bytes as they arrive."""
        with self._get(offset, offset + nbytes - 1) as answer:
            self._compare(answer)
            if answer.status != 206:  # noqa: PLR2004
                message = "the server stopped supporting byte ranges"
                raise Unreadable(message, where=self.name, hint=DOWNLOAD)
            self._check_range(answer, offset, nbytes)
            yield from answer.body(nbytes)

    @contextlib.contextmanager
    def stream(self, offset: int) -> Iterator[tuple[int, int | None, Iterator[bytes]]]:
        """Yield all bytes from `offset`, or from 0 if the server does not support ranges.

        Reads as many bytes as the server announces; if it announces no size, the number is limited.
        """
        with self._opened(offset, None) as answer:  # does not convert errors of the caller
            partial = answer.status == 206  # noqa: PLR2004
            nbytes = _total(answer) if partial else _length(answer)
            if self._version is None and nbytes is not None:
                self._version = _version(answer, nbytes)
            elif self._version is not None:
                self._compare(answer)
            start = max(_first(answer), 0) if partial else 0
            if partial and start != offset:
                raise Unreadable(_OTHER_RANGE, where=self.name)
            yield start, nbytes, self._whole(answer, start, nbytes)

    def _whole(self, answer: _Response, start: int, nbytes: int | None) -> Iterator[bytes]:
        with self._own_errors():
            yield from answer.body(_UNANNOUNCED - start if nbytes is None else nbytes - start)
            more = nbytes is None and answer.has_more()
        if more:
            raise Unreadable(
                f"the server announced no size and sent more than {_UNANNOUNCED:,} bytes",
                where=self.name,
                hint=_ELSEWHERE,
            )

    def check_unchanged(self) -> None:
        """Do nothing: every response was checked against the version that was opened."""

    def _compare(self, answer: _Response) -> None:
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

    def _check_range(self, answer: _Response, offset: int, nbytes: int) -> None:
        """Raise Unreadable unless the response is the range or a prefix of it."""
        sent = _range(answer)
        if answer.status == 206 and (sent is None or not sent.fits(offset, nbytes)):  # noqa: PLR2004
            raise Unreadable(_OTHER_RANGE, where=self.name)
        if (_length(answer) or 0) > nbytes:
            message = f"the server sends more than the {nbytes:,} bytes that were requested"
            raise Unreadable(message, where=self.name)

    @contextlib.contextmanager
    def _get(self, first: int, last: int | None) -> Iterator[_Response]:
        with self._opened(first, last) as answer, self._own_errors():
            yield answer

    @contextlib.contextmanager
    def _opened(self, first: int, last: int | None) -> Iterator[_Response]:
        """Yield the response, with a checked status, and close it afterwards."""
        answer = self._send(first, last)
        if answer.status in _DENIED and self._version:  # signed and redirected URLs expire
            answer.close()
            self._request = self._locate()
            answer = self._send(first, last)
        try:
            self._check_status(answer)
            yield answer
        finally:
            answer.close()

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Replace errors of urllib3 and of the socket by errors of this package."""
        try:
            yield
        except (HTTPError, OSError) as error:
            raise _broken(error, self.name) from None

    def _send(self, first: int, last: int | None) -> _Response:
        """Return the response after redirects, whose bodies are not read: they may be endless."""
        ask = {"Accept-Encoding": "identity", "User-Agent": f"cgpt-convert/{__version__}"}
        if first or last is not None:
            ask["Range"] = f"bytes={first}-{'' if last is None else last}"
            if self._version is not None and self._version.if_range:
                ask["If-Range"] = self._version.if_range
        request = self._request
        for _ in range(_REDIRECTS + 1):
            answer = self._asked(request.url, {**request.headers, **ask})
            target = answer.headers.get("Location")
            if answer.status not in _REDIRECTING or target is None:
                break
            answer.close()
            request = self._redirected(request, target)
        else:
            message = f"the server redirects more than {_REDIRECTS} times"
            raise Unreadable(message, where=self.name)
        self._kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        if urlsplit(request.url).netloc != urlsplit(self._request.url).netloc:
            # send later requests to the final URL directly, without credentials
            self._request = HttpRequest(request.url)
        return answer

    def _asked(self, url: str, headers: Mapping[str, str]) -> _Response:
        try:
            return self._answered(url, headers)
        except Dropped:
            # a server may close a kept connection at any time (RFC 9112, 9.5): use a new one
            return self._answered(url, headers)

    def _answered(self, url: str, headers: Mapping[str, str]) -> _Response:
        traffic.add(requests=1)
        try:
            return _Response(*get(url, headers))
        except (HTTPError, OSError, ValueError) as error:
            raise _broken(error, self.name) from None

    def _redirected(self, request: HttpRequest, target: str) -> HttpRequest:
        """Return the redirected request, without credentials if the host changes."""
        try:
            url = urljoin(request.url, target)
            then, now = urlsplit(request.url), urlsplit(url)
            valid = now.scheme in ("http", "https") and bool(now.hostname)
        except ValueError:
            valid = False
        if not valid:
            raise Unreadable("the server redirects to a URL that is not valid", where=self.name)
        if (then.scheme, then.netloc) == (now.scheme, now.netloc):
            return HttpRequest(url, request.headers)
        kept = {k: v for k, v in request.headers.items() if k.lower() not in _CREDENTIALS}
        return HttpRequest(url, kept)

    def _check_status(self, answer: _Response) -> None:
        status = answer.status
        if status in (200, 206):
            coding = answer.headers.get("Content-Encoding", "identity")
            if coding != "identity":
                message = f"the server sends the file with the content encoding {quoted(coding)}"
                raise Unsupported(message, where=self.name, hint=_ELSEWHERE)
        elif status in PASSING:
            raise TransientError(
                _responded(answer), retry_after(answer.headers.get("Retry-After", ""))
            )
        elif self._version is not None and status in (416, *_GONE):
            raise changed(self.name)
        elif status in _GONE:
            raise absent(self.name)
        elif status in _DENIED:
            message = f"the server denied access ({_status(answer)})"
            raise AccessDenied(message, where=self.name, hint=CREDENTIALS)
        elif not (status == 416 and _total(answer) == 0):  # noqa: PLR2004
            raise Unreadable(_responded(answer), where=self.name)


class AccessDenied(Unreadable):
    """The server rejected the request: the credentials are missing or insufficient."""


def _status(answer: _Response) -> str:
    return f"{answer.status} {answer.reason or ''}".strip()


def _responded(answer: _Response) -> str:
    return f"the server responded with {_status(answer)}"


def retry_after(text: str) -> float:
    """Return the seconds that Retry-After (RFC 9110, 10.2.3) asks for, at most a minute."""
    if text.isascii() and text.isdigit():
        return min(float(text), _LONGEST_WAIT)
    with contextlib.suppress(ValueError, OverflowError, OSError):
        ahead = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        return min(max(ahead, 0.0), _LONGEST_WAIT)
    return 0.0


class _ContentRange(NamedTuple):
    """A Content-Range (RFC 9110, 14.4). `first` and `last` are None in an unsatisfied range."""

    first: int | None
    last: int | None
    total: int | None

    def fits(self, offset: int, nbytes: int) -> bool:
        """Return whether this is the requested range or a prefix of it."""
        last = offset + nbytes - 1
        return self.first == offset and self.last is not None and offset <= self.last <= last


def _range(answer: _Response) -> _ContentRange | None:
    digits = f"([0-9]{{1,{_DIGITS}}})"
    text = answer.headers.get("Content-Range", "")
    match = re.fullmatch(rf"bytes (?:{digits}-{digits}|\*)/(?:{digits}|\*)", text.strip())
    if match is None:
        return None
    return _ContentRange(*(int(number) if number else None for number in match.groups()))


def _total(answer: _Response) -> int | None:
    content_range = _range(answer)
    return content_range.total if content_range else None


def _first(answer: _Response) -> int:
    content_range = _range(answer)
    return -1 if content_range is None or content_range.first is None else content_range.first


def _length(answer: _Response) -> int | None:
    text = answer.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(f"[0-9]{{1,{_DIGITS}}}", text) else None


def _version(answer: _Response, nbytes: int) -> _Version:
    headers = answer.headers
    return _Version(headers.get("ETag", ""), headers.get("Last-Modified", ""), nbytes)


def _broken(error: Exception, name: str) -> TransientError | CgptError:
    """Return an error without the text of urllib3's `error`, which has the URL with its secrets."""
    final: tuple[tuple[type[Exception], type[CgptError], str], ...] = (
        (LocationValueError, BadRequest, "the URL is not valid"),
        (SSLError, Unreadable, "the TLS certificate or protocol of the server is not accepted"),
        (InvalidHeader, Unreadable, "the response of the server is not valid HTTP"),
    )
    for kind, becomes, message in final:
        if isinstance(error, kind):
            return becomes(message, where=name)
    if isinstance(error, NameResolutionError):
        return TransientError(f"cannot resolve the host {quoted(error.conn.host)}")
    if isinstance(error, NewConnectionError):
        return TransientError(f"cannot connect to {quoted(error.conn.host)}")
    if isinstance(error, (NothingCame, TimeoutError)):
        return TransientError(f"no data arrived for {settings.timeout:g} seconds")
    return TransientError(CLOSED)


class _Response:
    """The head of a response, and its body as far as it is needed."""

    def __init__(self, answer: urllib3.BaseHTTPResponse, deadline: Deadline) -> None:
        self.status, self.reason, self.headers = answer.status, answer.reason, answer.headers
        self._answer, self._deadline = answer, deadline

    def body(self, most: int) -> Iterator[bytes]:
        """Yield the body in pieces as they arrive, at most `most` bytes.

        Raises TransientError if the data arrives too slowly.
        """
        waited = arrived = 0.0
        while most > 0:
            begun = time.monotonic()
            piece = self._read(min(_PIECE, most))
            if not piece:
                return
            most -= len(piece)
            waited, arrived = waited + time.monotonic() - begun, arrived + len(piece)
            if waited >= settings.timeout:
                if arrived < _SLOWEST * waited and most:
                    raise TransientError(
                        f"fewer than {_SLOWEST:,} bytes per second arrived for {waited:.0f} seconds"
                    )
                waited = arrived = 0.0
            yield piece

    def has_more(self) -> bool:
        """Return whether the body continues, by reading one byte."""
        return bool(self._read(1))

    def _read(self, most: int) -> bytes:
        self._deadline.extend()
        try:
            piece = self._answer.read1(most, decode_content=False)
        except (HTTPError, OSError, ValueError) as error:
            if self._deadline.passed:
                raise TimeoutError from None
            if isinstance(error, ValueError):  # http.client's error for an invalid chunk
                raise TransientError("the response is not valid HTTP") from None
            raise
        if self._deadline.passed:  # a shutdown looks like the end of the body
            raise TimeoutError
        traffic.add(nbytes=len(piece))
        return piece

    def close(self) -> None:
        """Close the response. The connection is reused if the body was read completely."""
        self._deadline.cancel()
        if self._answer.length_remaining == 0 and not self._deadline.passed:
            self._answer.release_conn()
        else:
            self._answer.close()

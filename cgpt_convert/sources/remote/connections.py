"""HTTP connections that are kept for later requests, with a deadline for each operation."""

from __future__ import annotations

import contextlib
import functools
import http.client
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ProtocolError

from cgpt_convert.core.threads import Event
from cgpt_convert.sources.remote.remote_object import TransientError
from cgpt_convert.sources.remote.remote_settings import settings

CLOSED = "the connection was closed early"


class Dropped(TransientError):
    """A kept connection was closed before a response arrived."""

    def __init__(self) -> None:
        super().__init__(CLOSED)


class Deadline:
    """Shuts down a connection on which an operation exceeds `settings.timeout`.

    A socket's own timeout restarts with each byte, and http.client reads headers and trailers as
    long as they continue.
    """

    def __init__(self) -> None:
        self.passed = False
        self._socket: Any = None
        self._end = 0.0
        self._cancelled = Event()

    def watch(self, connected: Any) -> None:
        """Start the deadline for the connection's socket."""
        self._socket = connected
        self.extend()
        with contextlib.suppress(RuntimeError):  # cannot start a thread
            threading.Thread(target=self._wait, daemon=True).start()

    def extend(self) -> None:
        """Restart the deadline, because data arrived."""
        self._end = time.monotonic() + settings.timeout

    def cancel(self) -> None:
        """Stop watching the connection."""
        self._cancelled.set()

    def _wait(self) -> None:
        while (left := self._end - time.monotonic()) > 0:
            if self._cancelled.wait(left):
                return
        self.passed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class _CurrentRequest(threading.local):
    """The request that the current thread is sending."""

    deadline: Deadline | None = None
    connected = False  # whether a new connection was made for it


_current = _CurrentRequest()


def get(url: str, headers: Mapping[str, str]) -> tuple[urllib3.BaseHTTPResponse, Deadline]:
    """Send a GET request; return the response, whose body is not read, and its deadline.

    Raises Dropped, or an error of urllib3 or of the socket.
    """
    deadline = _current.deadline = Deadline()
    _current.connected = False
    try:
        answer = _pool(url).request(
            "GET",
            url,
            headers=headers,
            preload_content=False,
            decode_content=False,
            redirect=False,
            retries=False,
            timeout=settings.timeout,
        )
    except (HTTPError, OSError, ValueError) as error:
        deadline.cancel()
        reason = error.args[-1] if isinstance(error, ProtocolError) else None
        if isinstance(reason, ConnectionError) and not _current.connected:
            raise Dropped from None
        raise
    return answer, deadline


class _Http(HTTPConnection):
    """A connection with a deadline for the head of a response."""

    _begun: http.client.HTTPResponse | None = None

    def connect(self) -> None:
        """Connect, and record that the connection is new."""
        _current.connected = True
        super().connect()

    def response_class(self, *words: Any, **more: Any) -> http.client.HTTPResponse:  # type: ignore[override]
        """Return a response that `getresponse` can close: urllib3 may reject its head."""
        self._begun = http.client.HTTPResponse(*words, **more)
        return self._begun

    def getresponse(self) -> Any:
        """Return the response; raise TimeoutError if the deadline has passed."""
        deadline = _current.deadline
        if deadline is None:
            return super().getresponse()
        deadline.watch(self.sock)
        try:
            answer = super().getresponse()
        except Exception:
            if self._begun is not None:
                self._begun.close()  # it holds the socket even after the connection is closed
            if deadline.passed:
                raise TimeoutError from None
            raise
        if deadline.passed:  # a shutdown looks like the end of the head
            answer.close()
            raise TimeoutError
        return answer


class _Https(_Http, HTTPSConnection):
    """The same connection over TLS."""


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Https


@functools.cache
def _manager(proxy: str) -> urllib3.PoolManager:
    kept = 2 * settings.connections
    if proxy:
        user = urlsplit(proxy).netloc.rpartition("@")[0]
        headers = urllib3.make_headers(proxy_basic_auth=user) if user else None
        manager: urllib3.PoolManager = urllib3.ProxyManager(
            proxy, maxsize=kept, proxy_headers=headers
        )
    else:
        manager = urllib3.PoolManager(maxsize=kept)
    manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return manager


def _pool(url: str) -> urllib3.PoolManager:
    """Return the connection pool for `url`, using the proxy that the environment defines."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme, "")
    return _manager("" if not proxy or proxy_bypass(parts.hostname or "") else proxy)

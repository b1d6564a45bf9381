"""Objects in the stores that fsspec supports: s3, gs, ftp, memory and others."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Any

from cgpt_convert.core.errors import BadRequest, CgptError, Unreadable
from cgpt_convert.sources.remote.http import HttpObject, HttpRequest
from cgpt_convert.sources.remote.remote_object import (
    CREDENTIALS,
    HEAD,
    FirstResponse,
    TransientError,
    absent,
    changed,
)
from cgpt_convert.sources.remote.remote_settings import settings, traffic
from cgpt_convert.sources.remote.retry import patiently

SIGNED = ("s3", "s3a")
_SIGNED_FOR = 3600  # seconds; then it is signed again
# fields that identify a version; sizes are compared as well
_TELLING = ("etag", "generation", "lastmodified", "last_modified", "mtime", "updated", "created")


class StoreObject:
    """A path in an fsspec file system."""

    def __init__(self, name: str, system: Any, path: str) -> None:
        self.name = name
        self._system, self._path = system, path
        self._version: dict[str, object] = {}
        self._nbytes = 0

    def open(self, head: int = HEAD) -> FirstResponse:
        """Return the size and the first bytes."""
        info = self._asked("info", self._path)
        if info.get("type") == "directory":
            raise absent(self.name)
        if info.get("size") is None:
            raise Unreadable("the store does not report the size of the file", where=self.name)
        self._nbytes = int(info["size"])
        self._version = _version(info)
        return FirstResponse(self._nbytes, b"".join(self.pieces(0, min(head, self._nbytes))))

    def pieces(self, offset: int, nbytes: int) -> Iterator[bytes]:
        """Yield the bytes, in one piece."""
        if nbytes == 0:
            return
        data = self._asked("cat_file", self._path, start=offset, end=offset + nbytes)
        traffic.add(nbytes=len(data))
        if len(data) != nbytes:
            raise changed(self.name)
        yield data

    @contextlib.contextmanager
    def stream(self, offset: int) -> Iterator[tuple[int, int | None, Iterator[bytes]]]:
        """Yield all bytes from `offset`, in pieces of moderate size."""
        if not self._version:
            self.open()
        step, end = 16 * HEAD, self._nbytes
        starts = range(offset, end, step)
        pieces = (p for at in starts for p in self.pieces(at, min(step, end - at)))
        yield offset, end, pieces

    def check_unchanged(self) -> None:
        """Query size, time and tag again; raise Unreadable if they changed."""
        self._system.invalidate_cache()
        if _version(self._asked("info", self._path)) != self._version:
            raise changed(self.name)

    def _asked(self, method: str, *words: Any, **more: Any) -> Any:
        traffic.add(requests=1)
        try:
            return getattr(self._system, method)(*words, **more)
        except Exception as error:  # noqa: BLE001  each store has its own exceptions
            raise worded(error, self.name) from None


def _version(info: dict[str, Any]) -> dict[str, object]:
    validators = {key: str(value) for key, value in info.items() if key.lower() in _TELLING}
    return {**validators, "size": info.get("size")}


def store(name: str, url: str) -> tuple[Any, str]:
    """Return the file system of `url` and the path in it.

    Raises BadRequest, with the package to install, if the scheme cannot be opened.
    """
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations
    except ImportError:
        extra = "s3" if scheme in SIGNED else "remote"
        raise BadRequest(
            f"{scheme}:// URLs require the package fsspec",
            where=name,
            hint=f"install it: pip install 'cgpt-convert[{extra}]'",
        ) from None
    known = known_implementations.get(scheme, {})
    options: dict[str, Any] = {}
    if scheme in SIGNED:
        seconds = {"connect_timeout": settings.timeout, "read_timeout": settings.timeout}
        once = {"retries": {"total_max_attempts": 1}}  # retries are made by `patiently`
        options = {"config_kwargs": {**seconds, **once, "signature_version": "s3v4"}}
        options["cache_regions"] = True  # a signature is for the bucket's own region
    try:
        system, path = url_to_fs(url, **options)
    except ImportError:
        extra = "install it: pip install 'cgpt-convert[s3]'"
        hint = extra if scheme in SIGNED else known.get("err", "")
        message = f"{scheme}:// URLs require a package that is not installed"
        raise BadRequest(message, where=name, hint=hint) from None
    except Exception as error:  # noqa: BLE001  each store has its own exceptions
        if not known:
            hint = "use a local path, or a URL with https://, s3:// or hf://"
            raise BadRequest(f"{scheme}:// URLs are not supported", where=name, hint=hint) from None
        raise _final(error, name) from None
    if scheme in SIGNED:
        system.retries = 1
    return system, path


def store_object(name: str, url: str) -> StoreObject | HttpObject:
    """Return the object at `url`, over signed HTTP if possible: it identifies versions best."""
    system, path = store(name, url)
    if url.partition("://")[0] not in SIGNED:
        return StoreObject(name, system, path)

    def locate() -> HttpRequest:
        return HttpRequest(
            _asked(name, lambda: system.sign(path, expiration=_SIGNED_FOR), requests=0)
        )

    return HttpObject(name, locate)


def listed(name: str, url: str) -> list[str]:
    """Return the names in the folder at `url`; raise BadRequest if it does not exist."""
    system, path = store(name, url)
    rows = _asked(name, lambda: system.ls(path, detail=False))
    return [str(row).rstrip("/").rpartition("/")[2] for row in rows]


def is_folder(name: str, url: str) -> bool:
    """Return whether `url` is a folder."""
    system, path = store(name, url)
    return bool(_asked(name, lambda: system.isdir(path)))


def _asked(name: str, question: Callable[[], Any], requests: int = 1) -> Any:
    """Return the result of `question`, with retries where they may help."""

    def attempt() -> Any:
        traffic.add(requests=requests)
        try:
            return question()
        except Exception as error:  # noqa: BLE001  each store has its own exceptions
            raise worded(error, name) from None

    return patiently(name, attempt)


def worded(error: Exception, name: str) -> TransientError | CgptError:
    """Return our error for a store's error, whose text may contain credentials or signed URLs."""
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return absent(name)
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return _final(error, name)
    if isinstance(error, OSError) and error.errno in _LASTING:
        return _final(error, name)
    kinds = {each.__name__ for each in type(error).__mro__}
    if isinstance(error, OSError) or kinds & _PASSING:
        return TransientError(f"the store reported the error {_called(error)}")
    return _final(error, name)


# OSErrors of s3fs for requests that no server accepts
_LASTING = (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EMSGSIZE)
_PASSING = frozenset({"ConnectionError", "HTTPClientError", "ResponseParserError"})  # of botocore


def _called(error: Exception) -> str:
    """Return a name for the error: the error code that the server sent, if there is one."""
    answer = getattr(error.__cause__, "response", None)  # of botocore's ClientError
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return str(code or type(error).__name__)


def _final(error: Exception, name: str) -> CgptError:
    message, hint = "the store rejected the request", "check the URL"
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        message, hint = "the store denied access", CREDENTIALS
    return Unreadable(f"{message} ({_called(error)})", where=name, hint=hint)

"""Objects of the stores that fsspec knows: s3, gs, ftp, memory ..."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cgpt_convert.errors import BadRequest, CgptError, Unreadable
from cgpt_convert.remote.http import HttpObject, Request
from cgpt_convert.remote.objects import HEAD, Broken, Opened, absent, changed
from cgpt_convert.remote.traffic import settings, traffic

_SIGNED = ("s3", "s3a")
_SIGNED_FOR = 3600  # seconds; then it is signed again
# what stores call that by which a version is told; sizes are compared as well
_TELLING = ("etag", "generation", "lastmodified", "last_modified", "mtime", "updated", "created")


class StoreObject:
    """A path in an fsspec file system."""

    def __init__(self, name: str, system: Any, path: str) -> None:
        self.name = name
        self._system, self._path = system, path
        self._version: dict[str, object] = {}
        self._nbytes = 0

    def open(self) -> Opened:
        """Size and first bytes."""
        info = self._asked("info", self._path)
        if info.get("type") == "directory":
            raise absent(self.name)
        if info.get("size") is None:
            raise Unreadable("the store does not tell the size", where=self.name)
        self._nbytes = int(info["size"])
        self._version = _version(info)
        return Opened(self._nbytes, b"".join(self.pieces(0, min(HEAD, self._nbytes))))

    def pieces(self, offset: int, nbytes: int) -> Iterator[bytes]:
        """The bytes, in one piece."""
        if nbytes == 0:
            return
        data = self._asked("cat_file", self._path, start=offset, end=offset + nbytes)
        traffic.add(nbytes=len(data))
        if len(data) != nbytes:
            raise changed(self.name)
        yield data

    def stream(self, offset: int) -> tuple[int, int | None, Iterator[bytes]]:
        """All the bytes from `offset`, in pieces of moderate size."""
        if not self._version:
            self.open()
        step, end = 16 * HEAD, self._nbytes
        starts = range(offset, end, step)
        pieces = (p for at in starts for p in self.pieces(at, min(step, end - at)))
        return offset, end, pieces

    def check_unchanged(self) -> None:
        """Ask for size, time and tag again."""
        self._system.invalidate_cache()
        if _version(self._asked("info", self._path)) != self._version:
            raise changed(self.name)

    def _asked(self, method: str, *words: Any, **more: Any) -> Any:
        traffic.add(requests=1)
        try:
            return getattr(self._system, method)(*words, **more)
        except Exception as error:  # noqa: BLE001  each store has its own kinds
            raise _worded(error, self.name) from None


def _version(info: dict[str, Any]) -> dict[str, object]:
    told = {key: str(value) for key, value in info.items() if key.lower() in _TELLING}
    return {**told, "size": info.get("size")}


def store(name: str, url: str) -> tuple[Any, str]:
    """The file system of `url` and the path in it; BadRequest, saying what to install."""
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations
    except ImportError:
        extra = "s3" if scheme in _SIGNED else "remote"
        raise BadRequest(
            f"{scheme}:// needs fsspec", where=name, hint=f"pip install 'cgpt-convert[{extra}]'"
        ) from None
    known = known_implementations.get(scheme, {})
    options: dict[str, Any] = {}
    if scheme in _SIGNED:
        seconds = {"connect_timeout": settings.timeout, "read_timeout": settings.timeout}
        options = {"config_kwargs": {**seconds, "signature_version": "s3v4"}}
        options["cache_regions"] = True  # a signature is for the bucket's own region
    try:
        return url_to_fs(url, **options)  # type: ignore[no-any-return]
    except ImportError:
        hint = "pip install 'cgpt-convert[s3]'" if scheme in _SIGNED else known.get("err", "")
        raise BadRequest(f"{scheme}:// needs another library", where=name, hint=hint) from None
    except Exception as error:  # noqa: BLE001  each store has its own kinds
        if not known:
            raise BadRequest(f"nothing reads {scheme}://", where=name) from None
        raise _final(error, name) from None


def store_object(name: str, url: str) -> StoreObject | HttpObject:
    """The object at `url`. What can be signed is read by HTTP: that tells versions apart best."""
    system, path = store(name, url)
    if url.partition("://")[0] not in _SIGNED:
        return StoreObject(name, system, path)

    def locate() -> Request:
        try:
            return Request(system.sign(path, expiration=_SIGNED_FOR))
        except Exception as error:  # noqa: BLE001  botocore's are many
            raise _final(error, name) from None

    return HttpObject(name, locate)


def listed(name: str, url: str) -> list[str]:
    """The names in the folder at `url`; BadRequest if there is none."""
    system, path = store(name, url)
    traffic.add(requests=1)
    try:
        rows = system.ls(path, detail=False)
    except Exception as error:  # noqa: BLE001  each store has its own kinds
        worded = _worded(error, name)
        raise (worded if isinstance(worded, CgptError) else _final(error, name)) from None
    return [str(row).rstrip("/").rpartition("/")[2] for row in rows]


def is_folder(name: str, url: str) -> bool:
    """Is `url` a folder, not a file?"""
    system, path = store(name, url)
    traffic.add(requests=1)
    try:
        return bool(system.isdir(path))
    except Exception as error:  # noqa: BLE001  each store has its own kinds
        raise _final(error, name) from None


def _worded(error: Exception, name: str) -> Broken | CgptError:
    """What to do about an error. Its own text may have credentials or signed URLs."""
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return absent(name)
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return _final(error, name)
    if isinstance(error, OSError):  # TimeoutError and ConnectionError are, and aiohttp's
        return Broken(f"the store fails ({type(error).__name__})")
    return _final(error, name)


def _final(error: Exception, name: str) -> CgptError:
    hint = ""
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        hint = "it wants credentials that have access; docs/remote.md tells where they go"
    return Unreadable(f"the store refuses it ({type(error).__name__})", where=name, hint=hint)

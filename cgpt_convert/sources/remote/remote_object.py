"""The interface and the errors of remote objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from cgpt_convert.core.errors import BadRequest, Unreadable, Unsupported

HEAD = 256 << 10  # bytes in the first request: enough to detect any format and for most headers
SMALL = 1 << 20  # largest object accepted from a server without ranges
CREDENTIALS = "check your credentials (docs/reference/remote.md#credentials)"
DOWNLOAD = "add --download to fetch the whole file first"


class FirstResponse(NamedTuple):
    """The result of the first request."""

    nbytes: int  # of the whole object
    head: bytes  # the first bytes: as many as requested, or all


Stream = tuple[int, "int | None", Iterator[bytes]]  # see RemoteObject.stream


class RemoteObject(Protocol):
    """A remote object: opened once, then read in ranges from many threads.

    The methods raise TransientError for transient errors and a CgptError for permanent ones.
    """

    name: str

    def open(self, head: int = HEAD) -> FirstResponse:
        """Return the size and the first `head` bytes; remember the version."""

    def pieces(self, offset: int, nbytes: int) -> Iterator[bytes]:
        """Yield at most `nbytes` bytes of that version from `offset`, as they arrive."""

    def stream(self, offset: int) -> AbstractContextManager[Stream]:
        """Yield the start of the response (0 without ranges), the object's size and its bytes."""

    def check_unchanged(self) -> None:
        """Raise Unreadable if the object is no longer that version."""


class TransientError(Exception):  # not reported unless all retries fail
    """A transient request failure. `wait` is the delay the server asked for in seconds, or 0."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait


class NotFound(BadRequest):
    """The object does not exist or is not visible."""


def absent(name: str) -> NotFound:
    """Return the error for an object that does not exist."""
    hint = "check the URL; the URL of a folder ends with /" if name.startswith("http") else ""
    return NotFound("no such file", where=name, hint=hint)


def changed(name: str) -> Unreadable:
    """Return the error for an object that has changed since it was opened."""
    return Unreadable(
        "the remote file changed while it was read",
        where=name,
        hint="run the command again when no program is writing to the file",
    )


def no_ranges(name: str) -> Unsupported:
    """Return the error for a server that ignores range requests."""
    return Unsupported("the server does not support byte ranges", where=name, hint=DOWNLOAD)

"""What all remote objects have in common: a version, ranges, and the ways in which they fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from cgpt_convert.core.errors import BadRequest, Unreadable, Unsupported

HEAD = 256 << 10  # bytes asked for at first: every kind of file is told, most headers are whole
SMALL = 1 << 20  # what a server without ranges may send whole


class Opened(NamedTuple):
    """The answer to the first request."""

    nbytes: int  # of the whole object
    head: bytes  # its first bytes: as many as were asked for, or all


class Object(Protocol):
    """A remote object: it is opened, then asked for ranges, from many threads.

    Both raise Broken for what may pass, a CgptError for what will not.
    """

    name: str

    def open(self, head: int = HEAD) -> Opened:
        """Its size and its first `head` bytes; which version it is, is noted."""

    def pieces(self, offset: int, nbytes: int) -> Iterator[bytes]:
        """The bytes from `offset` as they arrive, `nbytes` of them at most, of that version."""

    def stream(self, offset: int) -> tuple[int, int | None, Iterator[bytes]]:
        """Where the answer begins (0 if ranges are not served), the object's size, its bytes."""

    def check_unchanged(self) -> None:
        """Raise Unreadable if it is no longer that version."""


class Broken(Exception):  # no error yet: it is tried again
    """A request that failed in a way that may pass. `wait` is what the server asked for, or 0."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait


class Absent(BadRequest):
    """There is no such object, or none that may be seen."""


def absent(name: str) -> Absent:
    """The error for an object that is not there."""
    hint = "a folder's URL ends with /" if name.startswith("http") else ""
    return Absent("no such file", where=name, hint=hint)


def changed(name: str) -> Unreadable:
    """The error for an object that is no longer the version that was opened."""
    return Unreadable(
        "the remote file changed while it was read",
        where=name,
        hint="run again when nothing is writing to it",
    )


def no_ranges(name: str) -> Unsupported:
    """The error for a server that sends the whole object whatever is asked for."""
    return Unsupported(
        "the server does not serve byte ranges",
        where=name,
        hint="--download reads it once, from front to back, into a temporary file",
    )

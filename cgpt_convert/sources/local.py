"""Random-access byte sources. All other layers read through `Source.readinto` only."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Protocol

from cgpt_convert.core.errors import BadRequest, CgptError, Malformed, Unreadable

CHUNK = 256 << 10  # one read; larger buffers exceed the L2 cache and stream slower
_UNCHANGED = "run the command again when no program is writing to the file"


class Source(Protocol):
    """A named sequence of bytes of known size that can be read at any offset."""

    @property
    def name(self) -> str:
        """The name of the file, for messages."""

    @property
    def nbytes(self) -> int:
        """The size in bytes."""

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` from byte `offset`, or raise Malformed or Unreadable."""

    def check_unchanged(self) -> None:
        """Raise Unreadable if the bytes have changed since the source was opened."""


class OpenSource(Source, Protocol):
    """A source that holds an open resource."""

    def close(self) -> None:
        """Release the resource."""


def origins(source: Source) -> Iterator[Source]:
    """Yield the files that the source is part of or computed from; of a file, itself."""
    inner = getattr(source, "within", None)
    if inner is None:
        yield source
    elif isinstance(inner, tuple):
        for each in inner:
            yield from origins(each)
    else:
        yield from origins(inner)


def piece_nbytes(source: Source) -> int:
    """Return how many bytes to read at once; more than `CHUNK` if a read is put together."""
    return getattr(source, "piece", CHUNK)


def is_distant(source: Source) -> bool:
    """Return whether reads are remote, so that few large reads are preferable."""
    return getattr(source, "distant", False)


def is_sequential(source: Source) -> bool:
    """Return whether a read that goes back starts from the beginning, as in compressed data."""
    return getattr(source, "sequential", False)


def is_in_memory(source: Source) -> bool:
    """Return whether the bytes are an object in memory, such as an array in a pickle."""
    return getattr(source, "in_memory", False)


def is_file(source: Source) -> bool:
    """Return whether the bytes are those of a file, at the same offsets."""
    return getattr(source, "within", None) is None and not is_in_memory(source)


def as_local(source: Source) -> LocalFile | None:
    """Return the source if it is a local file."""
    return source if isinstance(source, LocalFile) else None


def expect(reads: Iterable[tuple[Source, int, int]]) -> None:
    """Announce future reads (source, offset, size), in order, to remote sources.

    They may prefetch these ranges. The announcement has no other effect.
    """
    by_source: dict[int, tuple[Source, list[tuple[int, int]]]] = {}
    for source, offset, nbytes in reads:
        if is_distant(source):
            by_source.setdefault(id(source), (source, []))[1].append((offset, nbytes))
    for source, ranges in by_source.values():
        if hasattr(source, "expect"):
            source.expect(ranges)


class LocalFile:
    """A regular file, read with `pread`: no shared position, no page faults.

    The file stays open from the start, so that the bytes that were checked are the bytes that are
    used. Only the first `HELD` files stay open, for folders with thousands of them; the others are
    reopened for each read and must still be the same file.
    """

    HELD = 256
    _held = 0

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self.index = ""  # the path of the index that names this file as a shard
        self._fd = -1
        descriptor = self._open()
        self._opened = os.fstat(descriptor)
        if not stat.S_ISREG(self._opened.st_mode):
            os.close(descriptor)
            if stat.S_ISDIR(self._opened.st_mode):
                raise BadRequest("the path is a folder", where=self.name, hint="pass a file")
            hint = "save the data to a file first"
            raise BadRequest("the path is not a regular file", where=self.name, hint=hint)
        self.nbytes = self._opened.st_size
        if LocalFile._held < self.HELD:
            LocalFile._held += 1
            self._fd = descriptor
        else:
            os.close(descriptor)

    def __getstate__(self) -> dict[str, object]:
        """Return the state of a copy, which opens the file, in any process, for each read."""
        return {**self.__dict__, "_fd": -1}

    def _open(self) -> int:
        # O_NONBLOCK so that opening a FIFO returns and can be rejected; O_BINARY for Windows
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            return os.open(self.name, flags | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise unreadable(error, self.name) from error

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        descriptor = self._fd
        if descriptor < 0:
            descriptor = self._open()
        try:
            if self._fd < 0:
                self._compare(os.fstat(descriptor))
            done = 0
            while done < len(buffer):
                count = pread(descriptor, buffer[done:], offset + done)
                if count == 0:
                    raise self._short(descriptor, offset + done)
                done += count
        except OSError as error:
            raise unreadable(error, self.name) from error
        finally:
            if self._fd < 0:
                os.close(descriptor)

    def _short(self, descriptor: int, position: int) -> CgptError:
        if os.fstat(descriptor).st_size < self.nbytes:
            message = "the file became shorter while it was read"
            return Unreadable(message, where=self.name, hint=_UNCHANGED)
        return outside(self.name, self.nbytes, position, 1)

    def check_unchanged(self) -> None:
        """Raise Unreadable if size or modification time changed since the file was opened."""
        try:
            self._compare(os.fstat(self._fd) if self._fd >= 0 else os.stat(self.name))
        except OSError as error:
            raise unreadable(error, self.name) from error

    def _compare(self, now: os.stat_result) -> None:
        then = self._opened
        same = (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns)
        if not (same and os.path.samestat(now, then)):
            message = "the file changed while it was read"
            raise Unreadable(message, where=self.name, hint=_UNCHANGED)

    def same_file(self, other: os.stat_result) -> bool:
        """Return whether `other` describes this file, under whatever path."""
        return os.path.samestat(self._opened, other)

    def close(self) -> None:
        """Close the descriptor; a further read opens the file again."""
        if self._fd >= 0:
            LocalFile._held -= 1
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def pread(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read from `offset` into `buffer`; return the number of bytes read, 0 at the file's end."""
    if _HAS_PREADV:
        return os.preadv(descriptor, [buffer], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows: one thread reads a file there
    data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)


_HAS_PREADV = hasattr(os, "preadv")  # checked once: a large transpose makes 100,000s of small reads


class MemoryBytes:
    """Bytes in memory, such as an array inside a pickle."""

    in_memory = True  # see `is_in_memory`

    def __init__(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self.name = name
        self._data = memoryview(data)
        self.nbytes = len(data)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        if offset < 0 or offset + len(buffer) > self.nbytes:
            raise outside(self.name, self.nbytes, offset, len(buffer))
        buffer[:] = self._data[offset : offset + len(buffer)]

    def check_unchanged(self) -> None:
        """Do nothing: the bytes in memory do not change."""


def read(source: Source, offset: int, nbytes: int) -> bytes:
    """Return `nbytes` bytes of `source` from `offset`; for small or already limited sizes only."""
    if offset < 0 or offset + nbytes > source.nbytes:
        raise outside(source.name, source.nbytes, offset, nbytes)
    data = bytearray(nbytes)
    source.readinto(offset, memoryview(data))
    return bytes(data)


def unreadable(error: OSError, path: str) -> CgptError:
    """Return the error for an OSError raised while reading `path`."""
    if isinstance(error, FileNotFoundError):
        return BadRequest("no such file", where=path)
    kind = "folder" if os.path.isdir(path) else "file"
    hint = "check the permissions" if isinstance(error, PermissionError) else ""
    message = f"cannot read the {kind}: {error.strerror or error}"
    return Unreadable(message, where=path, hint=hint)


def outside(where: str, size: int, offset: int, nbytes: int) -> Malformed:
    """Return the error for `nbytes` bytes at `offset` that are not all in a source of `size`."""
    needed = f"bytes {offset:,} to {offset + nbytes:,} are needed"
    return Malformed(f"{needed}, but the data ends at byte {size:,}", where=where)

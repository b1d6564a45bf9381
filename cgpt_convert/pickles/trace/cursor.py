"""Sequential reading of opcodes and argument bytes from pickles of any length.

It is meant for untrusted pickles: content that is too long to keep is skipped and represented by
its position.
"""

from __future__ import annotations

from cgpt_convert.core.errors import Malformed
from cgpt_convert.sources.local import CHUNK, Source, read

KEPT = 4096  # bytes of a text that are kept: importable names are shorter
_HEAD = 200  # bytes of longer texts that are displayed
_FIRST = 4 << 10  # most candidates prove at once not to be pickles


class Span:
    """Bytes or text of the pickle, left in place. `form` is the encoding.

    "bytes": as they are; "utf-8": text; "quoted": a string of protocol 0 with its quotes;
    "escaped": a text of protocol 0.
    """

    __slots__ = ("form", "head", "nbytes", "offset")

    def __init__(self, offset: int, nbytes: int, head: bytes, form: str) -> None:
        self.offset = offset  # in the source
        self.nbytes = nbytes
        self.head = head
        self.form = form

    def __repr__(self) -> str:
        shown = self.head[:_HEAD]
        more = "..." if self.nbytes > len(shown) else ""
        if self.form == "bytes":
            return f"{shown!r}{more}"
        text = shown.decode("utf-8", "backslashreplace")
        return f"{text}{more}" if self.form == "quoted" else f"{text!r}{more}"


class UnpicklingFault(Malformed):
    """Bytes that end, or at which every unpickler would stop."""


class OpcodeReader:
    """A forward-only position in the bytes of a source from `at`."""

    def __init__(self, source: Source, at: int = 0) -> None:
        self.source = source
        self.end = source.nbytes
        self.buffer = b""
        self.base = at  # the offset in the source of the buffer's first byte
        self.index = 0  # in the buffer, of the next byte
        self.begun = 0  # in the buffer, of the current opcode
        self._size = _FIRST

    @property
    def at(self) -> int:
        """The offset in the source of the next byte."""
        return self.base + self.index

    @property
    def position(self) -> int:
        """The offset in the source of the current opcode."""
        return self.base + self.begun

    def next(self) -> int:
        """Return the next byte of an argument. Raises Fault at the end."""
        index = self.index
        if index == len(self.buffer):
            self.fill(1)
            index = 0
        self.index = index + 1
        return self.buffer[index]

    def take(self, nbytes: int) -> bytes:
        """Return the next `nbytes` bytes; for small numbers only."""
        stop = self.index + nbytes
        if stop > len(self.buffer):
            self.fill(nbytes)
            stop = nbytes
        data = self.buffer[stop - nbytes : stop]
        self.index = stop
        return data

    def short(self) -> bytes:
        """Return the bytes that follow a one-byte length."""
        start, buffer = self.index + 1, self.buffer
        if start <= len(buffer):  # nearly always; avoiding calls halves the time
            stop = start + buffer[start - 1]
            if stop <= len(buffer):
                self.index = stop
                return buffer[start:stop]
        return self.take(self.next())

    def skip(self, nbytes: int) -> None:
        """Skip `nbytes` bytes without reading them."""
        if nbytes > self.end - self.at:
            raise UnpicklingFault("it ends inside an argument")
        if self.index + nbytes <= len(self.buffer):
            self.index += nbytes
            return
        self.base += self.index + nbytes
        self.begun -= self.index + nbytes
        self.buffer, self.index = b"", 0

    def fill(self, nbytes: int) -> None:
        """Read until the buffer has at least `nbytes` bytes from the current position.

        Raises Fault if there are fewer.
        """
        rest = self.buffer[self.index :]
        start = self.at + len(rest)
        size = min(max(self._size, nbytes - len(rest)), self.end - start)
        if len(rest) + size < nbytes:
            raise UnpicklingFault("it ends before its STOP opcode")
        self.buffer, self.base = rest + read(self.source, start, size), start - len(rest)
        self.begun -= self.index
        self.index = 0
        self._size = CHUNK

    def line(self, most: int | None = None, legal: frozenset[int] | None = None) -> Span:
        """Return a line without its end. Faults past `most` bytes, or on a byte not in `legal`.

        If the data ends first, the last byte is dropped instead, as in Python's own unpickler.
        """
        offset, head, nbytes = self.at, b"", 0
        while True:
            if self.index == len(self.buffer):
                if self.at == self.end:
                    kept = max(nbytes - 1, 0)
                    return Span(offset, kept, head[:kept], "utf-8")
                self.fill(1)
            end = self.buffer.find(b"\n", self.index)
            piece = self.buffer[self.index : end if end >= 0 else len(self.buffer)]
            if legal is not None:
                number, zero, _ = piece.partition(b"\0")
                if not legal.issuperset(number):
                    raise UnpicklingFault("a text argument contains invalid bytes")
                legal = None if zero else legal  # C reads a number up to the NUL
            head += piece[: KEPT - len(head)]
            nbytes += len(piece)
            self.index += len(piece)
            if most is not None and nbytes > most:
                raise UnpicklingFault("a name is too long to be imported")
            if end >= 0:
                self.index += 1
                return Span(offset, nbytes, head, "utf-8")

    def short_line(self, most: int) -> bytes | None:
        """Return a line of at most `most` bytes in the buffer; else None, without moving."""
        end = self.buffer.find(b"\n", self.index, self.index + most + 1)
        if end < 0:
            return None
        piece = self.buffer[self.index : end]
        self.index = end + 1
        return piece

    def sized(self, nbytes: int, form: str) -> Span:
        """Return an argument of `nbytes` bytes."""
        offset = self.at
        kept = min(nbytes, KEPT)
        if nbytes > self.end - offset:
            raise UnpicklingFault("it ends inside an argument")
        head = self.take(kept)
        self.skip(nbytes - kept)
        return Span(offset, nbytes, head, form)

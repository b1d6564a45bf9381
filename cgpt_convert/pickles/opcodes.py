"""Pickle bytes -> opcodes with their arguments, front to back, however large the pickle is.

For looking at pickles that nobody trusts: what is too long to be kept is passed over and stands
as the place where it lies.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from cgpt_convert.errors import Malformed
from cgpt_convert.inert import Value
from cgpt_convert.source import CHUNK, Source, read

KEPT = 4096  # bytes of a text that are kept: no name that can be imported is longer
_NAME_BYTES = 64 << 10  # nor can a line of that length be looked for as a module
_HEAD = 200  # bytes kept of what is longer, to be shown
_FIRST = 4 << 10  # most things that are looked at turn out not to be pickles at once


class Span:
    """Bytes or text of the pickle, left where they are. `form` is how they are written there.

    "bytes" as they are; "utf-8" for text; "quoted" for a text of protocol 0 with its quotes.
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


class Fault(Malformed):
    """Bytes that end, or that no unpickler would go on with."""


class Opcodes:
    """A position in the bytes of a source from `at` on, moving forward only."""

    def __init__(self, source: Source, at: int = 0) -> None:
        self.source = source
        self.end = source.nbytes
        self._buffer = b""
        self.base = at  # the offset in the source of the buffer's first byte
        self.index = 0  # in the buffer, of the next byte
        self._size = _FIRST

    @property
    def at(self) -> int:
        """The offset in the source of the next byte."""
        return self.base + self.index

    def next(self) -> int:
        """The next byte, an opcode. Raises Fault where there is none."""
        index = self.index
        if index == len(self._buffer):
            self._fill(1)
            index = 0
        self.index = index + 1
        return self._buffer[index]

    def take(self, nbytes: int) -> bytes:
        """The next few bytes."""
        stop = self.index + nbytes
        if stop > len(self._buffer):
            self._fill(nbytes)
            stop = nbytes
        data = self._buffer[stop - nbytes : stop]
        self.index = stop
        return data

    def skip(self, nbytes: int) -> None:
        """Move on without reading."""
        if nbytes > self.end - self.at:
            raise Fault("it ends inside an argument")
        if self.index + nbytes <= len(self._buffer):
            self.index += nbytes
            return
        self.base += self.index + nbytes
        self._buffer, self.index = b"", 0

    def _fill(self, nbytes: int) -> None:
        """Have at least that many bytes in the buffer, from the present position on."""
        rest = self._buffer[self.index :]
        start = self.at + len(rest)
        size = min(max(self._size, nbytes - len(rest)), self.end - start)
        if len(rest) + size < nbytes:
            raise Fault("it ends before its STOP opcode")
        self._buffer, self.base = rest + read(self.source, start, size), start - len(rest)
        self.index = 0
        self._size = CHUNK

    def line(self, most: int | None = None, legal: frozenset[int] | None = None) -> Span:
        """A line, less its end. Faults past `most` bytes, or on a byte that is not `legal`.

        Where the data end first, the last byte goes instead: Python's own unpickler does that.
        """
        offset, head, nbytes = self.at, b"", 0
        while True:
            if self.index == len(self._buffer):
                if self.at == self.end:
                    kept = max(nbytes - 1, 0)
                    return Span(offset, kept, head[:kept], "utf-8")
                self._fill(1)
            found = self._buffer.find(b"\n", self.index)
            piece = self._buffer[self.index : found if found >= 0 else len(self._buffer)]
            if legal is not None:
                number, zero, _ = piece.partition(b"\0")
                if not legal.issuperset(number):
                    raise Fault("a text argument with bytes that do not belong there")
                legal = None if zero else legal  # C takes a number up to there
            head += piece[: KEPT - len(head)]
            nbytes += len(piece)
            self.index += len(piece)
            if most is not None and nbytes > most:
                raise Fault("a name longer than any that can be imported")
            if found >= 0:
                self.index += 1
                return Span(offset, nbytes, head, "utf-8")

    def name(self) -> Value:
        """A line that is a module or a name, as text where it is short enough to be one."""
        piece = self.short_line(KEPT)
        if piece is None:
            return text(self.line(_NAME_BYTES))
        return piece.decode("utf-8", "surrogateescape")

    def short_line(self, most: int) -> bytes | None:
        """A line, if it has at most so many bytes and they are at hand; else it is not taken."""
        found = self._buffer.find(b"\n", self.index, self.index + most + 1)
        if found < 0:
            return None
        piece = self._buffer[self.index : found]
        self.index = found + 1
        return piece

    def sized(self, nbytes: int, form: str) -> Span:
        """An argument of that many bytes."""
        offset = self.at
        kept = min(nbytes, KEPT)
        if nbytes > self.end - offset:
            raise Fault("it ends inside an argument")
        head = self.take(kept)
        self.skip(nbytes - kept)
        return Span(offset, nbytes, head, form)


def text(span: Span) -> Value:
    """The text as a string if it is short, else as it is."""
    if span.nbytes > KEPT:
        return span
    return span.head.decode("utf-8", "surrogateescape")


def _fixed(layout: str) -> Callable[[Opcodes], Value]:
    packed = struct.Struct(layout)
    return lambda opcodes: packed.unpack(opcodes.take(packed.size))[0]


def _short_text(opcodes: Opcodes) -> Value:
    """The commonest text; here without a Span of it, as floods of it are."""
    size = opcodes.next()
    return opcodes.take(size).decode("utf-8", "surrogateescape")


def _sized(layout: str, form: str) -> Callable[[Opcodes], Value]:
    count = _fixed(layout)

    def argument(opcodes: Opcodes) -> Value:
        nbytes = count(opcodes)
        if nbytes < 0:
            raise Fault("a negative length")
        span = opcodes.sized(nbytes, form)
        return text(span) if form == "utf-8" else span

    return argument


def _byte_string(layout: str) -> Callable[[Opcodes], Value]:
    """A Python 2 `str`: text where it is ASCII, so that it may be a name."""
    read_bytes = _sized(layout, "bytes")

    def argument(opcodes: Opcodes) -> Value:
        span: Span = read_bytes(opcodes)
        return span.head.decode() if span.nbytes <= KEPT and span.head.isascii() else span

    return argument


def _integer(layout: str) -> Callable[[Opcodes], Value]:
    read_bytes = _sized(layout, "bytes")

    def argument(opcodes: Opcodes) -> Value:
        span: Span = read_bytes(opcodes)
        small = span.nbytes <= _INTEGER_NBYTES
        return int.from_bytes(span.head, "little", signed=True) if small else span

    return argument


_INTEGER_NBYTES = 128
_NUMBER = frozenset(b"0123456789abcdefABCDEFinIN+-._xXoOlLtyTY \t\r\v\f")
_DIGITS = 64


def _number(opcodes: Opcodes) -> Value:
    """An integer where it is a short one; any other number as its text."""
    start = opcodes.index
    plain = opcodes.short_line(_DIGITS)
    if plain is not None:
        if plain.isdigit():
            return int(plain)
        opcodes.index = start
    span = opcodes.line(legal=_NUMBER)
    digits = span.head.partition(b"\0")[0].removesuffix(b"L")
    try:
        return int(digits) if len(digits) <= _DIGITS else span
    except ValueError:
        return span


def _quoted(opcodes: Opcodes) -> Value:
    quote = opcodes.take(1)
    if quote not in (b"'", b'"'):
        raise Fault("a string argument without quotes")
    line = opcodes.line()
    inner = line.head[:-1]
    if line.nbytes <= KEPT and inner.isascii() and b"\\" not in inner:
        return inner.decode()
    return Span(line.offset - 1, line.nbytes + 1, quote + line.head, "quoted")


def _reference(opcodes: Opcodes) -> Value:
    """A line of ASCII; short ones are read without a Span, as numbers are."""
    start = opcodes.index
    piece = opcodes.short_line(KEPT)
    if piece is not None:
        if piece.isascii():
            return piece.decode("ascii")
        opcodes.index = start
    return text(opcodes.line(legal=frozenset(range(128))))


def _names(opcodes: Opcodes) -> tuple[Value, Value]:
    return opcodes.name(), opcodes.name()


# layout -> what reads an argument of it; raises Fault
ARGUMENTS: dict[str, Callable[[Opcodes], Value]] = {
    "uint1": _fixed("<B"),
    "uint2": _fixed("<H"),
    "int4": _fixed("<i"),
    "uint4": _fixed("<I"),
    "uint8": _fixed("<Q"),
    "float8": _fixed(">d"),
    "string1": _byte_string("<B"),
    "string4": _byte_string("<i"),
    "bytes1": _sized("<B", "bytes"),
    "bytes4": _sized("<I", "bytes"),
    "bytes8": _sized("<Q", "bytes"),
    "bytearray8": _sized("<Q", "bytes"),
    "unicodestring1": _short_text,
    "unicodestring4": _sized("<I", "utf-8"),
    "unicodestring8": _sized("<Q", "utf-8"),
    "long1": _integer("<B"),
    "long4": _integer("<i"),
    "stringnl": _quoted,
    "stringnl_noescape": _reference,
    "stringnl_noescape_pair": _names,
    "unicodestringnl": lambda opcodes: text(opcodes.line()),
    "decimalnl_short": _number,
    "decimalnl_long": _number,
    "floatnl": _number,
}

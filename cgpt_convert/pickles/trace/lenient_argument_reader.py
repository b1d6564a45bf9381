"""Reading of opcode arguments for the tracer: short ones as values, long ones as Spans.

Unlike the strict reader in `decode`, it accepts whatever some unpickler accepts.
"""

from __future__ import annotations

import codecs
import contextlib
import re
import struct
from collections.abc import Callable

from cgpt_convert.pickles.nodes import Value
from cgpt_convert.pickles.trace.cursor import KEPT, OpcodeReader, Span, UnpicklingFault

_NAME_BYTES = 64 << 10  # a longer line cannot be a module name


def _text(span: Span) -> Value:
    """Return short text as a string, longer text as a Span."""
    if span.nbytes > KEPT:
        return span
    return span.head.decode("utf-8", "surrogateescape")


def _fixed(layout: str) -> Callable[[OpcodeReader], Value]:
    packed = struct.Struct(layout)
    return lambda opcodes: packed.unpack(opcodes.take(packed.size))[0]


# The commonest arguments have a way of their own, without a Span where none is kept: floods are of
# them.


def _short_text(opcodes: OpcodeReader) -> Value:
    return opcodes.short().decode("utf-8", "surrogateescape")


def _short_bytes(opcodes: OpcodeReader) -> Value:
    data = opcodes.short()
    return Span(opcodes.base + opcodes.index - len(data), len(data), data, "bytes")


def _short_string(opcodes: OpcodeReader) -> Value:
    data = opcodes.short()
    if data.isascii():
        return data.decode()
    return Span(opcodes.base + opcodes.index - len(data), len(data), data, "bytes")


def _short_integer(opcodes: OpcodeReader) -> Value:
    data = opcodes.short()
    if len(data) <= _INTEGER_NBYTES:
        return int.from_bytes(data, "little", signed=True)
    return Span(opcodes.base + opcodes.index - len(data), len(data), data, "bytes")


def _sized(layout: str, form: str) -> Callable[[OpcodeReader], Value]:
    count = _fixed(layout)

    def argument(opcodes: OpcodeReader) -> Value:
        nbytes = count(opcodes)
        if nbytes < 0:
            raise UnpicklingFault("a negative length")
        return opcodes.sized(nbytes, form)

    return argument


def _sized_text(layout: str) -> Callable[[OpcodeReader], Value]:
    count = _fixed(layout)

    def argument(opcodes: OpcodeReader) -> Value:
        nbytes = count(opcodes)
        if nbytes > KEPT or nbytes > opcodes.end - opcodes.at:
            return opcodes.sized(nbytes, "utf-8")
        return opcodes.take(nbytes).decode("utf-8", "surrogateescape")

    return argument


def _byte_string(opcodes: OpcodeReader) -> Value:
    """Read a Python 2 `str`: text if it is ASCII, because it may be a name."""
    span: Span = _SIZED4(opcodes)
    return span.head.decode() if span.nbytes <= KEPT and span.head.isascii() else span


def _integer(opcodes: OpcodeReader) -> Value:
    span: Span = _SIZED4(opcodes)
    small = span.nbytes <= _INTEGER_NBYTES
    return int.from_bytes(span.head, "little", signed=True) if small else span


_SIZED4 = _sized("<i", "bytes")
_INTEGER_NBYTES = 128
_NUMBER = frozenset(b"0123456789abcdefABCDEFinIN+-._xXoOlLtyTY \t\r\v\f")
_DIGITS = 64
_ZERO = ord("0")
_OCTAL = rb"[+-]?0[0-7_]+"
_QUOTES = (b"'", b'"')


def _number(opcodes: OpcodeReader) -> Value:
    """Read a number: a short integer as an int, any other number as its text."""
    start = opcodes.index
    plain = opcodes.short_line(_DIGITS)
    if plain is not None:
        plain = plain.removesuffix(b"L")
        if plain.isdigit() and (plain[0] != _ZERO or len(plain) == 1):
            return int(plain)
        opcodes.index = start
    span = opcodes.line(legal=_NUMBER)
    return span if span.nbytes > KEPT else integer(span.head, span)


def integer(written: bytes, otherwise: Value = None) -> Value:
    """Return the integer as any loader reads it, in any base; else `otherwise`.

    `0x10` and `1_0` are integers to Python 3, `0x10L` to Python 2, `010` to C's strtol.
    """
    number = written.partition(b"\0")[0].strip().rstrip(b"lL")
    try:
        return int(number, 8 if re.fullmatch(_OCTAL, number) else 0)
    except ValueError:
        return otherwise


def memo_index(opcodes: OpcodeReader) -> Value:
    """Return the index of a memo entry: a number, or the line if it is not a plain number."""
    piece = opcodes.short_line(KEPT)
    if piece is None:
        return opcodes.line()
    plain = piece.isdigit() and (piece[0] != _ZERO or len(piece) == 1) and len(piece) <= _DIGITS
    return int(piece) if plain else piece.decode("latin-1")


def _line(opcodes: OpcodeReader) -> Value:
    piece = opcodes.short_line(KEPT)
    if piece is None:
        line = opcodes.line()
        if line.nbytes > KEPT:
            return Span(line.offset, line.nbytes, line.head, "escaped")
        piece = line.head
    if piece.isascii() and b"\\" not in piece:
        return piece.decode("ascii")
    try:
        return piece.decode("raw-unicode-escape")
    except UnicodeDecodeError:
        return piece.decode("latin-1")


def _quoted(opcodes: OpcodeReader) -> Value:
    piece = opcodes.short_line(KEPT)
    if piece is None:
        quote = opcodes.take(1)
        if quote not in _QUOTES:
            raise UnpicklingFault("a string argument has no quotes")
        line = opcodes.line()
        place, nbytes, piece = line.offset - 1, line.nbytes + 1, quote + line.head
    else:
        place, nbytes = opcodes.base + opcodes.index - len(piece) - 1, len(piece)
    if piece[:1] not in _QUOTES:
        raise UnpicklingFault("a string argument has no quotes")
    inner = piece.rstrip()[1:-1]  # Python 2 allows blanks after the quote
    if nbytes <= KEPT and inner.isascii():
        if b"\\" not in inner:
            return inner.decode("ascii")
        with contextlib.suppress(ValueError):  # a bad escape, or bytes that are not ASCII
            return codecs.escape_decode(inner)[0].decode("ascii")
    return Span(place, nbytes, piece, "quoted")


def _reference(opcodes: OpcodeReader) -> Value:
    """Read a line of any bytes, as Python 2 accepts; short ones without making a Span."""
    piece = opcodes.short_line(KEPT)
    if piece is not None:
        return piece.decode("utf-8", "surrogateescape")
    return _text(opcodes.line())


def _names(opcodes: OpcodeReader) -> tuple[Value, Value]:
    return _name(opcodes), _name(opcodes)


def _name(opcodes: OpcodeReader) -> Value:
    """Read a line that is a module or a name, as text if it is short enough to be one."""
    piece = opcodes.short_line(KEPT)
    if piece is None:
        return _text(opcodes.line(_NAME_BYTES))
    return piece.decode("utf-8", "surrogateescape")


# layout -> function that reads the argument; raises Fault
ARGUMENTS: dict[str, Callable[[OpcodeReader], Value]] = {
    "uint1": OpcodeReader.next,
    "uint2": _fixed("<H"),
    "int4": _fixed("<i"),
    "uint4": _fixed("<I"),
    "uint8": _fixed("<Q"),
    "float8": _fixed(">d"),
    "string1": _short_string,
    "string4": _byte_string,
    "bytes1": _short_bytes,
    "bytes4": _sized("<I", "bytes"),
    "bytes8": _sized("<Q", "bytes"),
    "bytearray8": _sized("<Q", "bytes"),
    "unicodestring1": _short_text,
    "unicodestring4": _sized_text("<I"),
    "unicodestring8": _sized_text("<Q"),
    "long1": _short_integer,
    "long4": _integer,
    "stringnl": _quoted,
    "stringnl_noescape": _reference,
    "stringnl_noescape_pair": _names,
    "unicodestringnl": _line,
    "decimalnl_short": _number,
    "decimalnl_long": _number,
    "floatnl": _number,
}

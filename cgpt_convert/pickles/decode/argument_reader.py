"""Decoding of opcode arguments to plain values. `opcode_table` has the layout for each opcode."""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.limits import PICKLE, Limits
from cgpt_convert.pickles.nodes import Value


class Incomplete(Malformed):
    """The bytes end before the pickle does; with more bytes it may decode."""


class PickleCursor:
    """A position in the bytes of a pickle; `at` is the next byte."""

    def __init__(self, data: bytes, limits: Limits, start: int) -> None:
        self.data = data
        self.limits = limits
        self.at = start

    def take(self, nbytes: int) -> bytes:
        """Return the next `nbytes` bytes and move past them; Incomplete if there are fewer."""
        start, self.at = self.at, self.at + nbytes
        if self.at > len(self.data):
            raise Incomplete("the pickle ends inside an argument")
        return self.data[start : self.at]

    def line(self) -> bytes:
        """Return the bytes up to the next newline and move past it."""
        end = self.data.find(b"\n", self.at, self.at + self.limits.line_bytes)
        if end < 0:
            if self.at + self.limits.line_bytes >= len(self.data):
                raise Incomplete("the pickle ends inside a line")
            raise Unsupported(f"a text argument is longer than {self.limits.line_bytes:,} bytes")
        line, self.at = self.data[self.at : end], end + 1
        return line


Reader = Callable[[PickleCursor], Value]  # reads one argument and moves past it


def _fixed(layout: str) -> Reader:
    packed = struct.Struct(layout)
    size, unpack = packed.size, packed.unpack_from

    def read(cursor: PickleCursor) -> Value:
        try:
            (value,) = unpack(cursor.data, cursor.at)
        except struct.error:
            raise Incomplete("the pickle ends inside an argument") from None
        cursor.at += size
        return value

    return read


def _byte(cursor: PickleCursor) -> int:
    """Return the next byte. Indexing takes half the time of unpack, and this is the most common."""
    try:
        value = cursor.data[cursor.at]
    except IndexError:
        raise Incomplete("the pickle ends inside an argument") from None
    cursor.at += 1
    return value


def _sized(count: str, convert: Callable[[bytes], Value]) -> Reader:
    size = _byte if count == "<B" else _fixed(count)

    def read(cursor: PickleCursor) -> Value:
        nbytes = size(cursor)
        if nbytes < 0:
            raise Malformed("a negative length")
        return convert(cursor.take(nbytes))

    return read


def _line(convert: Callable[[bytes], Value]) -> Reader:
    return lambda cursor: convert(cursor.line())


def _utf8(data: bytes) -> str:
    # pickle writes lone surrogates unchanged (PEP 383), so they are legal here
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise Malformed("a text is not UTF-8") from error


def _byte_string(data: bytes) -> str | bytes:
    """Decode a Python 2 `str`: text if it is ASCII, as torch assumes for keys, else bytes."""
    return data.decode("ascii") if data.isascii() else data


_ESCAPED = rb"""(?s)(?:[^\\]|\\(?:[\\'"nrt]|x[0-9a-fA-F]{2}))*"""


def _quoted(data: bytes) -> str | bytes:
    if len(data) < len("''") or data[:1] != data[-1:] or data[:1] not in (b"'", b'"'):
        raise Malformed("a string argument has no quotes")
    inside = data[1:-1]
    if b"\\" not in inside:
        return _byte_string(inside)
    if not re.fullmatch(_ESCAPED, inside):
        raise Malformed("a string argument has an escape that repr() does not write")
    return _byte_string(codecs.escape_decode(inside)[0])


def _raw_unicode(data: bytes) -> str:
    try:
        return data.decode("raw-unicode-escape")
    except UnicodeDecodeError as error:
        raise Malformed("a text has an invalid escape") from error


def _short_decimal(data: bytes) -> int | bool:
    """Decode an INT argument; `01` and `00` are True and False in protocol 0."""
    if data in (b"00", b"01"):
        return data == b"01"
    return _decimal(data)


def _long_decimal(data: bytes) -> int:
    return _decimal(data.removesuffix(b"L"))


# the forms that repr() writes; unpicklers disagree about `010`, `0x10` and `1_0`
_DECIMAL = rb"-?(?:0|[1-9][0-9]*)"
_FLOAT = rb"[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|inf|nan)"


def _decimal(data: bytes) -> int:
    plain = data.isdigit() and (data[0] != ord("0") or len(data) == 1)
    if not plain and not re.fullmatch(_DECIMAL, data):  # which takes three times as long
        raise Malformed("an integer argument is invalid")
    return int(data)


def _float(data: bytes) -> float:
    if not re.fullmatch(_FLOAT, data):
        raise Malformed("a float argument is invalid")
    return float(data)


def _long(data: bytes) -> int:
    if len(data) > PICKLE.integer_bytes:
        raise Unsupported(f"an integer is too large: {len(data):,} bytes")
    return int.from_bytes(data, "little", signed=True)


def _names(cursor: PickleCursor) -> tuple[str, str]:
    return _utf8(cursor.line()), _utf8(cursor.line())


# layout -> function that reads the argument
READERS: dict[str, Reader] = {
    "uint1": _byte,
    "uint2": _fixed("<H"),
    "int4": _fixed("<i"),
    "uint4": _fixed("<I"),
    "uint8": _fixed("<Q"),
    "float8": _fixed(">d"),
    "string1": _sized("<B", _byte_string),
    "string4": _sized("<i", _byte_string),
    "bytes1": _sized("<B", bytes),
    "bytes4": _sized("<I", bytes),
    "bytes8": _sized("<Q", bytes),
    "bytearray8": _sized("<Q", bytearray),
    "unicodestring1": _sized("<B", _utf8),
    "unicodestring4": _sized("<I", _utf8),
    "unicodestring8": _sized("<Q", _utf8),
    "long1": _sized("<B", _long),
    "long4": _sized("<i", _long),
    "stringnl": _line(_quoted),
    "stringnl_noescape": _line(_utf8),
    "stringnl_noescape_pair": _names,
    "unicodestringnl": _line(_raw_unicode),
    "decimalnl_short": _line(_short_decimal),
    "decimalnl_long": _line(_long_decimal),
    "floatnl": _line(_float),
}

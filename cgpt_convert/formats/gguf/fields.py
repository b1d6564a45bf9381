"""Encoding and decoding of the typed key-value pairs of a GGUF header.

The specification is ggml/docs/gguf.md; details that it omits follow ggml/src/gguf.cpp
`gguf_init_from_reader`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from cgpt_convert.core.errors import BadRequest, Malformed, Unsupported
from cgpt_convert.core.limits import GGUF_HEADER_BYTES, GGUF_ITEMS
from cgpt_convert.core.text import quoted
from cgpt_convert.plan import Field, Scalar
from cgpt_convert.sources.local import Source, read

# `enum gguf_type`: the positions are its numbers; the values are the format characters of struct
_TYPES = {
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "float32": "f",
    "bool": "?",
    "string": "",
    "array": "",
    "uint64": "Q",
    "int64": "q",
    "float64": "d",
}
_NAMES = tuple(_TYPES)
_NUMBERS = {name: struct.Struct("<" + code) for name, code in _TYPES.items()}
_STRING, _ARRAY = _NAMES.index("string"), _NAMES.index("array")
_WINDOW = 1 << 20  # bytes read at once
_SHOWN_ITEMS = 8  # of an array
_FLOAT32_DIGITS = 9  # digits that distinguish any two float32

KEY_BYTES = 65535  # gguf.md: at most 2^16 - 1 bytes


def encode(field: Field) -> bytes:
    """Encode key, type and value. Raises BadRequest for a value that its type cannot represent."""
    number = _NAMES.index(field.type)
    try:
        if isinstance(field.value, tuple):
            head = struct.pack("<IIQ", _ARRAY, number, len(field.value))
            value = _encoded(field.type, field.value)
        else:
            head = struct.pack("<I", number)
            value = _encoded(field.type, (field.value,))
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        message = f"the GGUF key {field.key} cannot have the value {field.value!r:.80}: {error}"
        raise BadRequest(message) from error
    return string(field.key) + head + value


def string(text: str) -> bytes:
    """Encode a string: its length in bytes, then its bytes."""
    data = text.encode()
    return len(data).to_bytes(8, "little") + data


def _encoded(kind: str, values: tuple[Scalar, ...]) -> bytes:
    if kind == "string":  # a vocabulary has 100,000 strings
        texts = list(map(str.encode, map(str, values)))
        sizes = list(map(len, texts))
        lengths = {nbytes: nbytes.to_bytes(8, "little") for nbytes in set(sizes)}
        heads = map(lengths.__getitem__, sizes)
        return b"".join(chain.from_iterable(zip(heads, texts, strict=True)))
    return struct.pack(f"<{len(values)}{_TYPES[kind]}", *values)


class FieldReader:
    """A reader of numbers and strings from the start of a source, which it reads on demand."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.at = 0  # bytes taken so far
        self._data = bytearray()
        self._items = 0

    def take(self, nbytes: int) -> bytes:
        """Return the next bytes. Raises Malformed past the end of the file."""
        end = self.at + nbytes
        if end > len(self._data):
            self._read_to(end)
        taken = bytes(memoryview(self._data)[self.at : end])
        self.at = end
        return taken

    def number(self, kind: str) -> int:
        """Return the next number, of an integer type."""
        number = _NUMBERS[kind]
        (value,) = number.unpack(self.take(number.size))
        return int(value)

    def text(self) -> str:
        """Return the next string. Raises Malformed if it is not UTF-8."""
        at, data = self.at, self.take(self.number("uint64"))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.malformed(f"the name at byte {at:,} is not valid UTF-8") from error

    def strings(self, count: int) -> bytes:
        """Return the next `count` strings with their lengths, undecoded."""
        self._items += count
        if self._items > GGUF_ITEMS:
            message = f"the header has more strings than the limit of {GGUF_ITEMS:,}"
            raise Unsupported(message, where=self._where)
        start = at = self.at
        have, length = len(self._data), struct.Struct("<Q").unpack_from
        for _ in range(count):  # a vocabulary has 100,000 of them
            if at + 8 > have:
                have = self._read_to(at + 8)
            at += 8 + length(self._data, at)[0]
            if at > have:
                have = self._read_to(at)
        self.at = at
        return bytes(memoryview(self._data)[start:at])

    def malformed(self, message: str) -> Malformed:
        """Return a Malformed error with this message for the file."""
        return Malformed(message, where=self._where)

    @property
    def _where(self) -> str:
        return self.source.name

    def _read_to(self, end: int) -> int:
        """Read up to at least `end`; return the number of bytes read in total."""
        if end > self.source.nbytes:
            raise self.malformed(
                f"the file is truncated inside its header: byte {end:,} of {self.source.nbytes:,} "
                "is needed"
            )
        if end > GGUF_HEADER_BYTES:
            message = f"the header has at least {end:,} bytes, the limit is {GGUF_HEADER_BYTES:,}"
            raise Unsupported(message, where=self._where)
        have = len(self._data)
        most = min(self.source.nbytes, GGUF_HEADER_BYTES)
        self._data += read(self.source, have, min(max(end, have + _WINDOW), most) - have)
        return len(self._data)


class StoredValue(NamedTuple):
    """A value as it is stored: `length` consecutive values of a type, None for a scalar."""

    type: str
    length: int | None
    data: bytes

    def value(self) -> Scalar | tuple[Scalar, ...]:
        """Return the number, string or tuple. Bytes that are not UTF-8 become backslash escapes."""
        values = tuple(self._values(self.length if self.length is not None else 1))
        return values if self.length is not None else values[0]

    def text(self) -> str:
        """Return the value for display; for a long array only its type and length."""
        if self.length is not None and (self.length > _SHOWN_ITEMS or self.type == "string"):
            plural = "" if self.length == 1 else "s"
            return f"[{self.length} {self.type}{plural}]"
        value = self.value()
        if isinstance(value, tuple):
            return f"[{', '.join(self._shown(item) for item in value)}]"
        return self._shown(value)

    def _values(self, count: int) -> Iterable[Scalar]:
        if self.type == "string":
            return _split(self.data)
        code = _TYPES[self.type]
        return struct.unpack(f"<{count}{code}", self.data)

    def _shown(self, value: Scalar) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if self.type != "float32":
            return str(value)
        short = (f"{value:.{digits}g}" for digits in range(1, _FLOAT32_DIGITS))
        exact = (text for text in short if _is_float32(text, value))
        return next(exact, f"{value:.{_FLOAT32_DIGITS}g}")


def _is_float32(text: str, value: Scalar) -> bool:
    """Return whether the text, rounded to float32, equals the value."""
    try:
        return struct.pack("<f", float(text)) == struct.pack("<f", value)
    except OverflowError:  # the largest number, rounded up to fewer digits
        return False


def _split(data: bytes) -> Iterator[str]:
    at = 0
    while at < len(data):
        (nbytes,) = struct.unpack_from("<Q", data, at)
        yield data[at + 8 : at + 8 + nbytes].decode(errors="backslashreplace")
        at += 8 + nbytes


def parse(cursor: FieldReader) -> tuple[str, StoredValue]:
    """Return the next key and value. Raises Malformed for an unknown type."""
    key = cursor.text()
    if not key:
        raise cursor.malformed(f"the key before byte {cursor.at:,} is empty")
    number, count = cursor.number("uint32"), None
    if number == _ARRAY:
        number, count = cursor.number("uint32"), cursor.number("uint64")
    if number >= len(_NAMES) or number == _ARRAY:
        raise cursor.malformed(f"the value of {quoted(key)} has the invalid type {number}")
    kind = _NAMES[number]
    if number == _STRING:
        return key, StoredValue(kind, count, cursor.strings(1 if count is None else count))
    size = struct.calcsize("<" + _TYPES[kind])
    return key, StoredValue(kind, count, cursor.take(size * (1 if count is None else count)))

"""Tar archives as byte ranges of members.

`members` reads only the tars that torch 0.1 wrote with Python's tarfile. `files` walks any tar, for
scanning: it accepts links, folders, long names and duplicate names, since every file is scanned,
whichever a reader would choose. Names are those that tarfile returns. Both reject tars that readers
interpret differently. tarfile also accepts some forms that no writer produces (signed checksums,
`0o7`, `1_0`, `+7`, a size after a NUL, several headers for one file, data after the end); `files`
rejects them as malformed.

POSIX.1-2017, pax: "ustar Interchange Format" and "pax Extended Header"; GNU tar's manual, "Basic
Tar Format".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.limits import MEMBERS, MiB
from cgpt_convert.core.text import printable, quoted
from cgpt_convert.sources.local import CHUNK, Source, read

BLOCK = 512
_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 136), slice(148, 156)
_TYPE, _MAGIC, _PREFIX = slice(156, 157), slice(257, 262), slice(345, 500)
_HEADER_NBYTES = 1 * MiB  # of an extended header; Python writes little more than a time
_TORCH_MEMBERS = 64  # a torch tar has four

_FOLDER = b"5"
_EMPTY = b"123456"  # links, devices and folders have no bytes of their own
_LINKS = b"12"
_GLOBAL, _LONG_NAME, _LONG_LINK, _SPARSE = b"g", b"L", b"K", b"S"
_ABOUT = b"xXgLK"  # extended headers, which describe the file that follows
_WIDE = 8 << 30  # sizes from here on do not fit into the header field
_POSITIVE, _NEGATIVE = b"\x80", b"\xff"  # GNU: numbers in base 256, for large ones
_ASCII = bytes(range(128))
_NUMBER = re.compile(rb" *([0-7]*)[ \0]*")  # the padding that all writers use
_LOADED = ("storages", "tensors", "pickle")  # names in torch's tars: such a link hides the file
_REJECTED = ("GNU.sparse", "hdrcharset")  # keywords that change a file's bytes or its name
_SHOWN = 40  # characters of a keyword or number, in errors


class TarMember(NamedTuple):
    """A regular file in a tar. `offset` is that of its first byte."""

    name: str
    offset: int
    nbytes: int


def is_tar(block: bytes) -> bool:
    """Return whether `block` is a tar header, by its checksum: old headers have no magic."""
    if len(block) < BLOCK or not any(block):
        return False
    try:
        return _octal(block[_SUM]) == _checksum(block)
    except Malformed:
        return False


def members(source: Source) -> tuple[dict[str, TarMember], int]:
    """Return the members by name, and the offset after the last.

    Raises Malformed for damage and duplicate names, Unsupported for links, devices, sparse files
    and more members than a torch tar has.
    """
    by_name: dict[str, TarMember] = {}
    keywords: dict[str, str] = {}  # from the extended header before a member
    at = 0
    while at + BLOCK <= source.nbytes:
        block = read(source, at, BLOCK)
        if not any(block):
            break
        where = f"{source.name}[byte {at:,}]"
        if not is_tar(block):
            raise Malformed("the checksum of the tar header does not match", where=where)
        nbytes, kind = _octal(block[_SIZE], where), block[_TYPE]
        at += BLOCK
        if kind == b"x":
            if keywords:
                raise Malformed("the tar member has two extended headers", where=where)
            if nbytes > min(_HEADER_NBYTES, source.nbytes - at):
                raise Malformed(f"the extended tar header has {nbytes:,} bytes", where=where)
            keywords = _pax(read(source, at, nbytes), where)
        elif kind in (b"0", b"\0"):
            member = _member(block, keywords, at, where)
            keywords = {}
            if member.name in by_name:
                raise Malformed(f"two tar members are named {quoted(member.name)}", where=where)
            if len(by_name) == _TORCH_MEMBERS:
                message = f"the tar has more members than the limit of {_TORCH_MEMBERS}"
                raise Unsupported(message, where=source.name)
            by_name[member.name] = member
            nbytes = member.nbytes
        else:
            message = (
                f"the tar member is not a regular file (type {quoted(kind.decode('latin-1'))})"
            )
            raise Unsupported(message, where=where)
        at += -(-nbytes // BLOCK) * BLOCK
    return by_name, at


def _member(block: bytes, pax: dict[str, str], at: int, where: str) -> TarMember:
    prefix = _text(block[_PREFIX]) if block[_MAGIC] == b"ustar" else ""
    name = f"{prefix}/{_text(block[_NAME])}" if prefix else _text(block[_NAME])
    size = _octal(block[_SIZE])
    return TarMember(
        pax.get("path", name), at, _keyword_size(pax, where) if "size" in pax else size
    )


def _keyword_size(keywords: dict[str, str], where: str) -> int:
    """Return the size of a file from its extended header."""
    digits = keywords["size"]
    if not (digits.isascii() and digits.isdigit() and len(digits) < len(str(1 << 63))):
        message = f"the size {quoted(digits, _SHOWN)} in the extended tar header is not valid"
        raise Malformed(message, where=where)
    return int(digits)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _octal(field: bytes, where: str = "") -> int:
    digits = field.lstrip(b" ").rstrip(b" \0")
    if not digits.isdigit() or digits.translate(None, b"01234567"):
        raise _bad_number(field, where)
    return int(digits, 8)


def _bad_number(field: bytes, where: str) -> Malformed:
    text = quoted(field.decode("latin-1"))
    return Malformed(f"the number {text} in the tar header is not valid", where=where)


def _checksum(block: bytes) -> int:
    """Return the sum of the header's bytes, with the checksum field counted as spaces."""
    return sum(block) - sum(block[_SUM]) + ord(" ") * len(block[_SUM])


def pax_keywords(data: bytes, where: str) -> dict[str, str]:
    """Parse an extended header: lines of `LENGTH KEY=VALUE`, LENGTH of the whole line.

    Raises Malformed for anything else.
    """
    keywords, at = {}, 0
    while at < len(data):
        length, space, _ = data[at : at + 20].partition(b" ")
        end = at + int(length) if length.isdigit() else 0
        key, equals, value = data[at + len(length) + 1 : end - 1].partition(b"=")
        whole = at < end <= len(data) and data[end - 1 : end] == b"\n"
        if not (space and equals and whole):
            raise Malformed("the extended tar header is damaged", where=where)
        if key.decode("latin-1") in keywords:
            keyword = quoted(key.decode("latin-1"), _SHOWN)
            raise Malformed(f"the tar keyword {keyword} occurs twice", where=where)
        keywords[key.decode("latin-1")] = value.decode("utf-8", "surrogateescape")
        at = end
    return keywords


def _pax(data: bytes, where: str) -> dict[str, str]:
    """Return the keywords; reject those that torch's tars never contain."""
    keywords = pax_keywords(data, where)
    for key in keywords:
        if key.startswith("GNU.sparse") or key in ("linkpath", "hdrcharset"):
            raise Unsupported(f"the tar keyword {quoted(key)} is not supported", where=where)
    return keywords


def is_tar_to_tarfile(block: bytes) -> bool:
    """Return whether Python's tarfile accepts the first block of a file as the header of a member.

    See `TarInfo.frombuf` and `nti` in Lib/tarfile.py; it reads numbers as `int(text, 8)` does.
    """
    if len(block) < BLOCK or not any(block):
        return False
    field = block[_SUM]
    if field[:1] in (_POSITIVE, _NEGATIVE):
        number = int.from_bytes(field[1:], "big") - (field[:1] == _NEGATIVE) * (1 << 56)
    else:
        try:
            number = int(field.split(b"\0")[0].decode("ascii").strip() or "0", 8)
        except ValueError:
            return False
    rest = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(rest)
    return number in (unsigned, unsigned - 256 * len(rest.translate(None, _ASCII)))


def files(source: Source) -> Iterator[TarMember]:
    """Yield the regular files, in order.

    Raises Malformed for damage and where readers would find different files, Unsupported for sparse
    files.
    """
    at, count = 0, 0
    names = _PendingNames()
    while at + BLOCK <= source.nbytes:
        block, where = read(source, at, BLOCK), f"{source.name}[byte {at:,}]"
        if not any(block):
            _check_end(source, at, where)
            names.check_used(where)
            return
        if not is_tar(block):
            raise Malformed("the checksum of the tar header does not match", where=where)
        kind, nbytes = block[_TYPE], _number(block[_SIZE], where)
        at += BLOCK
        count += 1
        if count > MEMBERS:
            message = f"the tar has more members than the limit of {MEMBERS:,}"
            raise Unsupported(message, where=source.name)
        if kind in _ABOUT:
            names.note(kind, _small(source, at, nbytes, where), where)
        else:
            name, nbytes = names.take(block, nbytes, where)
            if kind not in _EMPTY:
                yield TarMember(name, at, min(nbytes, source.nbytes - at))
        if nbytes > source.nbytes - at:
            end = at + nbytes
            message = f"the tar is truncated: a member ends at byte {end:,} of {source.nbytes:,}"
            raise Malformed(message, where=where)
        at += -(-nbytes // BLOCK) * BLOCK
    names.check_used(source.name)
    if at < source.nbytes and any(read(source, at, source.nbytes - at)):
        raise Malformed("the tar ends inside a header", where=source.name)


class _PendingNames:
    """The contents of extended headers, which apply to the next file."""

    def __init__(self) -> None:
        self.keywords: dict[str, str] = {}
        self.long_name = ""

    def note(self, kind: bytes, text: bytes, where: str) -> None:
        """Record the text of an extended header. Raises Malformed for a second one of a kind."""
        if kind == _LONG_NAME:
            if self.long_name or "path" in self.keywords:
                raise Malformed("the tar member has two long names", where=where)
            if not text.endswith(b"\0"):
                raise Malformed("a long name in the tar is not terminated", where=where)
            self.long_name = _text(text)
            return
        if kind == _LONG_LINK:
            return
        keywords = pax_keywords(text, where)
        if kind == _GLOBAL and (self.keywords or keywords.keys() & {"size", "path"}):
            raise Malformed("a global tar header sets the size or name of every file", where=where)
        rejected = [key for key in keywords if key.startswith(_REJECTED)]
        if rejected:
            raise Unsupported(
                f"the tar keyword {quoted(rejected[0])} is not supported", where=where
            )
        if kind != _GLOBAL:
            if self.keywords or (self.long_name and "path" in keywords):
                raise Malformed("the tar member has two extended headers", where=where)
            self.keywords = keywords or {"": ""}

    def take(self, block: bytes, nbytes: int, where: str) -> tuple[str, int]:
        """Return name and size of the file whose header is `block`."""
        kind, keywords = block[_TYPE], self.keywords
        nbytes = _size(keywords, nbytes, where)
        if kind == _SPARSE:
            raise Unsupported("the tar contains a sparse file", where=where)
        if kind in _EMPTY and nbytes:
            message = f"a link, device or folder in the tar has {nbytes:,} bytes of data"
            raise Malformed(message, where=where)
        prefix, name = _text(block[_PREFIX]), _text(block[_NAME])
        name = f"{prefix}/{name}" if prefix else name
        name = keywords.get("path") or self.long_name or name
        self.keywords, self.long_name = {}, ""
        if name.endswith("/") and kind != _FOLDER:  # a folder or a file: readers disagree
            message = f"the name of the tar member {quoted(name)} ends with a slash"
            raise Malformed(message, where=where)
        if kind in _LINKS and name in _LOADED:
            raise Malformed(f"the tar member {quoted(name)} is a link, not a file", where=where)
        return printable(name), nbytes

    def check_used(self, where: str) -> None:
        """Raise Malformed if a header describes a file that does not follow."""
        if self.keywords or self.long_name:
            message = "the tar ends after an extended header, before the file that it describes"
            raise Malformed(message, where=where)


def _check_end(source: Source, at: int, where: str) -> None:
    """Raise Malformed unless only zeros follow the first zero block: some readers continue."""
    for start in range(at, source.nbytes, CHUNK):
        if any(read(source, start, min(CHUNK, source.nbytes - start))):
            raise Malformed("the tar has data after its end marker", where=where)


def _number(field: bytes, where: str) -> int:
    if field[:1] == _POSITIVE:
        number = int.from_bytes(field[1:], "big")
        if number >= _WIDE:
            return number
    match = _NUMBER.fullmatch(field)
    if not match:
        raise _bad_number(field, where)
    return int(match[1] or b"0", 8)


def _small(source: Source, at: int, nbytes: int, where: str) -> bytes:
    if nbytes > min(_HEADER_NBYTES, source.nbytes - at):
        raise Malformed(f"the extended tar header has {nbytes:,} bytes", where=where)
    data = read(source, at, min(-(-nbytes // BLOCK) * BLOCK, source.nbytes - at))
    if any(data[nbytes:]):  # tarfile also reads the rest of the block
        raise Malformed("the extended tar header has data after its end", where=where)
    return data[:nbytes]


def _size(keywords: dict[str, str], nbytes: int, where: str) -> int:
    """Return the file's size; the keyword may differ only where the header field is too small."""
    if not keywords.get("size"):
        return nbytes
    size = _keyword_size(keywords, where)
    if nbytes != size < _WIDE:
        message = f"the tar header says {nbytes:,} bytes, the extended header says {size:,}"
        raise Malformed(message, where=where)
    return size

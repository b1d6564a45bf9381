"""Files of any tar as byte ranges, for scanning. Rejects tars that readers interpret differently.

POSIX.1-2017, pax: "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format". Unlike
`archives.tar`, which reads torch's own tars, it accepts links, folders, long names and duplicate
names: every file is scanned, whichever a reader would choose. Names are those that Python's tarfile
returns. Where tarfile accepts what no writer produces (signed checksums, `0o7`, `1_0`, `+7`, a size
after a NUL, several headers for one file, data after the end), the tar is malformed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cgpt_convert.archives.tar import BLOCK, TarMember, is_tar, pax_keywords
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.limits import MEMBERS, MiB
from cgpt_convert.core.text import printable
from cgpt_convert.sources.local import CHUNK, Source, read

_NAME, _SIZE, _TYPE, _PREFIX = slice(0, 100), slice(124, 136), slice(156, 157), slice(345, 500)
_SUM = slice(148, 156)
_FOLDER = b"5"
_EMPTY = b"123456"  # links, devices and folders have no bytes of their own
_LINKS = b"12"
_GLOBAL, _LONG_NAME, _LONG_LINK, _SPARSE = b"g", b"L", b"K", b"S"
_ABOUT = b"xXgLK"  # headers about the file that follows
_HEADER_NBYTES = 1 * MiB
_WIDE = 8 << 30  # sizes from here on do not fit into the header field
_POSITIVE, _NEGATIVE = b"\x80", b"\xff"  # GNU: numbers in base 256, for large ones
_ASCII = bytes(range(128))
_NUMBER = re.compile(rb" *([0-7]*)[ \0]*")  # the padding that all writers use
_LOADED = ("storages", "tensors", "pickle")  # names in torch's tars: a link there hides the file
_REFUSED = ("GNU.sparse", "hdrcharset")  # keywords that change what or where the bytes are


def is_tar_to_tarfile(block: bytes) -> bool:
    """Return whether Python's tarfile takes the first block of a file for the header of a member.

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
            raise Malformed("a damaged tar header", where=where)
        kind, nbytes = block[_TYPE], _number(block[_SIZE], where)
        at += BLOCK
        count += 1
        if count > MEMBERS:
            raise Unsupported(f"a tar of more than {MEMBERS:,} members", where=source.name)
        if kind in _ABOUT:
            names.note(kind, _small(source, at, nbytes, where), where)
        else:
            name, nbytes = names.take(block, nbytes, where)
            if kind not in _EMPTY:
                yield TarMember(name, at, min(nbytes, source.nbytes - at))
        if nbytes > source.nbytes - at:
            raise Malformed("the tar is cut off", where=where)
        at += -(-nbytes // BLOCK) * BLOCK
    names.check_used(source.name)
    if at < source.nbytes and any(read(source, at, source.nbytes - at)):
        raise Malformed("a tar that ends inside a header", where=source.name)


class _PendingNames:
    """The information in headers that apply to the next file."""

    def __init__(self) -> None:
        self.keywords: dict[str, str] = {}
        self.long_name = ""

    def note(self, kind: bytes, text: bytes, where: str) -> None:
        """Record the text of one such header. Raises Malformed for a second one of a kind."""
        if kind == _LONG_NAME:
            if self.long_name or "path" in self.keywords:
                raise Malformed("a file with two long names in a tar", where=where)
            if not text.endswith(b"\0"):
                raise Malformed("a long name of a tar without an end", where=where)
            self.long_name = _text(text)
            return
        if kind == _LONG_LINK:
            return
        found = pax_keywords(text, where)
        if kind == _GLOBAL and (self.keywords or found.keys() & {"size", "path"}):
            raise Malformed("a size or name for all files of a tar", where=where)
        if any(key.startswith(_REFUSED) for key in found):
            raise Unsupported("a sparse file in a tar, or names in another charset", where=where)
        if kind != _GLOBAL:
            if self.keywords or (self.long_name and "path" in found):
                raise Malformed("two headers about one file of a tar", where=where)
            self.keywords = found or {"": ""}

    def take(self, block: bytes, nbytes: int, where: str) -> tuple[str, int]:
        """Return name and size of the file whose header is `block`."""
        kind, keywords = block[_TYPE], self.keywords
        nbytes = _size(keywords, nbytes, where)
        if kind == _SPARSE:
            raise Unsupported("a sparse file in a tar", where=where)
        if kind in _EMPTY and nbytes:
            raise Malformed("a link, device or folder with bytes", where=where)
        prefix, name = _text(block[_PREFIX]), _text(block[_NAME])
        name = f"{prefix}/{name}" if prefix else name
        name = keywords.get("path") or self.long_name or name
        self.keywords, self.long_name = {}, ""
        if name.endswith("/") and kind != _FOLDER:  # a folder or a file: readers disagree
            raise Malformed("a file of a tar whose name ends in a slash", where=where)
        if kind in _LINKS and name in _LOADED:
            raise Malformed(f"a link in the place of {name}", where=where)
        return printable(name), nbytes

    def check_used(self, where: str) -> None:
        """Raise Malformed if a header describes a file that does not follow."""
        if self.keywords or self.long_name:
            raise Malformed("a tar that ends before the file that a header is about", where=where)


def _check_end(source: Source, at: int, where: str) -> None:
    """Raise Malformed unless only zeros follow the first zero block: some readers read on."""
    for start in range(at, source.nbytes, CHUNK):
        if any(read(source, start, min(CHUNK, source.nbytes - start))):
            raise Malformed("a tar that goes on behind its end", where=where)


def _number(field: bytes, where: str) -> int:
    if field[:1] == _POSITIVE:
        number = int.from_bytes(field[1:], "big")
        if number >= _WIDE:
            return number
    found = _NUMBER.fullmatch(field)
    if not found:
        raise Malformed(f"not a tar number: {field!r}", where=where)
    return int(found[1] or b"0", 8)


def _small(source: Source, at: int, nbytes: int, where: str) -> bytes:
    if nbytes > min(_HEADER_NBYTES, source.nbytes - at):
        raise Malformed(f"a tar header of {nbytes:,} bytes", where=where)
    data = read(source, at, min(-(-nbytes // BLOCK) * BLOCK, source.nbytes - at))
    if any(data[nbytes:]):  # tarfile also reads the rest of the block
        raise Malformed("a tar header that goes on behind its end", where=where)
    return data[:nbytes]


def _size(keywords: dict[str, str], nbytes: int, where: str) -> int:
    """Return the file's size; the keyword may differ only where the header field is too small."""
    told = keywords.get("size", "")
    if not told:
        return nbytes
    if not (told.isascii() and told.isdigit() and len(told) < len(str(1 << 63))):
        raise Malformed(f"a tar member of {printable(told[:40])} bytes", where=where)
    if int(told) != nbytes and int(told) < _WIDE:
        raise Malformed("a file with two sizes in a tar", where=where)
    return int(told)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")

"""Any tar -> its files as byte ranges, for those who look into each. Refuses what readers dispute.

POSIX.1-2017, pax: "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format". Unlike
`tarball`, which reads torch's own, it takes links, folders and long names, and equal names: every
file is looked at, whichever a reader would take.
"""

from __future__ import annotations

from collections.abc import Iterator

from cgpt_convert.containers.tarball import BLOCK, Member, is_tar, pax_keywords
from cgpt_convert.errors import Malformed, Unsupported
from cgpt_convert.inert import printable
from cgpt_convert.limits import MEMBERS, MiB
from cgpt_convert.source import Source, read

_NAME, _SIZE, _TYPE = slice(0, 100), slice(124, 136), slice(156, 157)
_EMPTY = b"123456"  # links, devices and folders have no bytes of their own
_GLOBAL, _LONG_NAME, _LONG_LINK, _SPARSE = b"g", b"L", b"K", b"S"
_ABOUT = b"xXgLK"  # headers about the file that follows
_HEADER_NBYTES = 1 * MiB
_WIDE = 8 << 30  # from here on the header has no room for a size


def files(source: Source) -> Iterator[Member]:
    """The regular files, in order.

    Raises Malformed for damage and where readers would find different files, Unsupported for
    sparse files.
    """
    at, count = 0, 0
    names = _Names()
    while at + BLOCK <= source.nbytes:
        block, where = read(source, at, BLOCK), f"{source.name}[byte {at:,}]"
        if not any(block):
            _check_end(source, at, where)
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
                yield Member(name, at, min(nbytes, source.nbytes - at))
        if nbytes > source.nbytes - at:
            raise Malformed("the tar is cut off", where=where)
        at += -(-nbytes // BLOCK) * BLOCK


class _Names:
    """What the headers before a file say of it."""

    def __init__(self) -> None:
        self.keywords: dict[str, str] = {}
        self.long_name = ""

    def note(self, kind: bytes, text: bytes, where: str) -> None:
        """Take in the text of one such header."""
        if kind == _LONG_NAME:
            self.long_name = text.split(b"\0")[0].decode("utf-8", "replace")
        elif kind != _LONG_LINK:
            found = pax_keywords(text, where)
            if kind != _GLOBAL:
                self.keywords = found
            elif found.keys() & {"size", "path"}:
                raise Malformed("a size or name for all files of a tar", where=where)

    def take(self, block: bytes, nbytes: int, where: str) -> tuple[str, int]:
        """The name and the size of the file of which `block` is the header."""
        kind, keywords = block[_TYPE], self.keywords
        nbytes = _size(keywords, nbytes, where)
        if kind == _SPARSE or any(key.startswith("GNU.sparse") for key in keywords):
            raise Unsupported("a sparse file in a tar", where=where)
        if kind in _EMPTY and nbytes:
            raise Malformed("a link, device or folder with bytes", where=where)
        name = keywords.get("path") or self.long_name or _text(block[_NAME])
        self.keywords, self.long_name = {}, ""
        return printable(name), nbytes


def _check_end(source: Source, at: int, where: str) -> None:
    """One block of zeros ends a tar for some readers, two for others: they must agree."""
    if at + 2 * BLOCK <= source.nbytes and is_tar(read(source, at + BLOCK, BLOCK)):
        raise Malformed("a tar that goes on behind its end", where=where)


def _number(field: bytes, where: str) -> int:
    if field[0] & 0x80:  # GNU: base 256, for large ones
        number = int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
        if field[0] & 0x40:
            raise Malformed("a negative tar number", where=where)
        return number
    digits = field.strip(b" \0")
    if digits and (not digits.isdigit() or digits.translate(None, b"01234567")):
        raise Malformed(f"not a tar number: {field!r}", where=where)
    return int(digits or b"0", 8)


def _small(source: Source, at: int, nbytes: int, where: str) -> bytes:
    if nbytes > min(_HEADER_NBYTES, source.nbytes - at):
        raise Malformed(f"a tar header of {nbytes:,} bytes", where=where)
    return read(source, at, nbytes)


def _size(keywords: dict[str, str], nbytes: int, where: str) -> int:
    """The file's size; the keyword may stand in only where the header has no room for it."""
    told = keywords.get("size", "")
    if not told:
        return nbytes
    if not (told.isascii() and told.isdigit() and len(told) < len(str(1 << 63))):
        raise Malformed(f"a tar member of {printable(told[:40])} bytes", where=where)
    if int(told) != nbytes and int(told) < _WIDE:
        raise Malformed("a file with two sizes in a tar", where=where)
    return int(told)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "replace")

"""Reading of the tar archives that torch 0.1 wrote with Python's tarfile; no other tars.

POSIX.1-2017, pax: "ustar Interchange Format" and "pax Extended Header".
"""

from __future__ import annotations

from typing import NamedTuple

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.limits import MiB
from cgpt_convert.core.text import printable
from cgpt_convert.sources.local import Source, read

BLOCK = 512
_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 136), slice(148, 156)
_TYPE, _MAGIC, _PREFIX = slice(156, 157), slice(257, 262), slice(345, 500)
_PAX_NBYTES = 1 * MiB  # one keyword header; Python writes little more than a time
MEMBERS = 64  # a torch tar has four


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
    found: dict[str, TarMember] = {}
    keywords: dict[str, str] = {}  # from the extended header before a member
    at = 0
    while at + BLOCK <= source.nbytes:
        block = read(source, at, BLOCK)
        if not any(block):
            break
        where = f"{source.name}[byte {at:,}]"
        if not is_tar(block):
            raise Malformed("a damaged tar header", where=where)
        nbytes, kind = _octal(block[_SIZE], where), block[_TYPE]
        at += BLOCK
        if kind == b"x":
            if keywords or nbytes > min(_PAX_NBYTES, source.nbytes - at):
                raise Malformed(f"{nbytes:,} bytes of tar keywords, or twice", where=where)
            keywords = _pax(read(source, at, nbytes), where)
        elif kind in (b"0", b"\0"):
            member = _member(block, keywords, at, where)
            keywords = {}
            if member.name in found:
                raise Malformed(f"two members are named {printable(member.name)!r}", where=where)
            if len(found) == MEMBERS:
                raise Unsupported(f"a tar of more than {MEMBERS} members", where=source.name)
            found[member.name] = member
            nbytes = member.nbytes
        else:
            raise Unsupported(f"a tar member of type {kind!r}: no plain file", where=where)
        at += -(-nbytes // BLOCK) * BLOCK
    return found, at


def _member(block: bytes, pax: dict[str, str], at: int, where: str) -> TarMember:
    prefix = _text(block[_PREFIX]) if block[_MAGIC] == b"ustar" else ""
    name = f"{prefix}/{_text(block[_NAME])}" if prefix else _text(block[_NAME])
    size = pax.get("size", str(_octal(block[_SIZE])))
    if not (size.isascii() and size.isdigit() and len(size) < len(str(1 << 63))):
        raise Malformed(f"a tar member of {printable(size[:40])} bytes", where=where)
    return TarMember(pax.get("path", name), at, int(size))


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _octal(field: bytes, where: str = "") -> int:
    digits = field.lstrip(b" ").rstrip(b" \0")
    if not digits.isdigit() or digits.translate(None, b"01234567"):
        raise Malformed(f"not a tar number: {field!r}", where=where)
    return int(digits, 8)


def _checksum(block: bytes) -> int:
    """Return the sum of the header's bytes, with the checksum field counted as spaces."""
    return sum(block) - sum(block[_SUM]) + ord(" ") * len(block[_SUM])


def pax_keywords(data: bytes, where: str) -> dict[str, str]:
    """Parse an extended header: lines of `LENGTH KEY=VALUE`, LENGTH of the whole line.

    Raises Malformed for anything else.
    """
    found, at = {}, 0
    while at < len(data):
        length, space, _ = data[at : at + 20].partition(b" ")
        end = at + int(length) if length.isdigit() else 0
        key, equals, value = data[at + len(length) + 1 : end - 1].partition(b"=")
        whole = at < end <= len(data) and data[end - 1 : end] == b"\n"
        if not (space and equals and whole):
            raise Malformed("damaged tar keywords", where=where)
        if key.decode("latin-1") in found:
            raise Malformed("a tar keyword twice", where=where)
        found[key.decode("latin-1")] = value.decode("utf-8", "surrogateescape")
        at = end
    return found


def _pax(data: bytes, where: str) -> dict[str, str]:
    """Return the keywords; reject those that torch's tars never contain."""
    found = pax_keywords(data, where)
    for key in found:
        if key.startswith("GNU.sparse") or key in ("linkpath", "hdrcharset"):
            raise Unsupported(f"the tar keyword {key}", where=where)
    return found

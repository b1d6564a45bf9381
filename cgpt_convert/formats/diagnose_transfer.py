"""Detection of transfer damage: duplicated content, wrong resume offset, text conversion."""

from __future__ import annotations

import base64
import binascii
import re

from cgpt_convert.archives.zip_directory import END, END64, LOCATOR64
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.limits import MiB
from cgpt_convert.formats.registry import built_in
from cgpt_convert.sources.local import CHUNK, Source, read

_BINARY = "copy or download it again, as binary data"
_ARCHIVE = b"PK\3\4"
_MAGIC = (  # of binary files
    *(_ARCHIVE, b"\x80\2", b"\x80\4", b"\x1f\x8b"),
    *(magic for form in built_in() for offset, magic in form.magic if not offset),
)
_BOM = b"\xef\xbb\xbf"
_LOOK = 64 << 10  # bytes of the start that are checked for text conversion
_LINES = 4  # newlines needed to recognise changed line ends
_MANY = 8  # bytes needed to recognise a text conversion
_LATIN1 = rb"[\x00-\x7f]|[\xc2\xc3][\x80-\xbf]"


def diagnose(source: Source) -> CgptError | None:
    """Return the error that describes transfer damage; None if none is recognised.

    Use this only for files that cannot be read: an intact file may show some of these signs.
    """
    start = read(source, 0, min(_LOOK, source.nbytes))
    return _as_text(source, start) or _archives(source, start) or _twice(source, start)


def _as_text(source: Source, start: bytes) -> CgptError | None:
    """Return the error for a file that a program converted as text."""
    where = source.name
    if start.startswith(_BOM) and start[len(_BOM) :].startswith(_MAGIC):
        return Malformed("a byte order mark (UTF-8) was put before it", where=where, hint=_BINARY)
    if _is_recoded(start):
        message = "it was taken for Latin-1 text and converted to UTF-8"
        return Malformed(message, where=where, hint=_BINARY)
    if start.count(b"\xef\xbf\xbd") >= _MANY:
        message = "it was taken for text, and bytes were replaced by U+FFFD"
        return Malformed(message, where=where, hint=_BINARY)
    if b"\0" in start and _has_changed_lines(source):
        message = "it was taken for text, and its line ends were changed from LF to CR LF"
        hint = f"{_BINARY}: FTP in binary mode, or git with the file marked as binary"
        return Malformed(message, where=where, hint=hint)
    if _is_base64(start):
        hint = "decode it first: base64 -d FILE > model"
        return Unsupported("a file encoded as base64", where=where, hint=hint)
    return None


def _is_recoded(start: bytes) -> bool:
    """Return whether all bytes from 0x80 on look like Latin-1 in UTF-8, and there are many."""
    high = len(re.findall(rb"[\xc2\xc3][\x80-\xbf]", start))
    cut = start[:-1] if start[-1:] in (b"\xc2", b"\xc3") else start
    return high >= _MANY and re.fullmatch(rb"(?:" + _LATIN1 + rb")*", cut) is not None


def _has_changed_lines(source: Source) -> bool:
    """Return whether every newline in the first bytes follows a carriage return."""
    lines = ends = 0
    last = b""
    for at in range(0, min(source.nbytes, MiB), CHUNK):
        data = last[-1:] + read(source, at, min(CHUNK, source.nbytes - at))
        lines += data[len(last[-1:]) :].count(b"\n")
        ends += data.count(b"\r\n")
        last = data
    return lines == ends >= _LINES


def _is_base64(start: bytes) -> bool:
    head = b"".join(start[:1024].split())[:64]
    try:
        return base64.b64decode(head, validate=True).startswith(_MAGIC)
    except binascii.Error:
        return False


def _archives(source: Source, start: bytes) -> CgptError | None:
    """Return the error for a ZIP whose directory is not where the ZIP says it is."""
    moved = _moved(source)
    if not moved or not start.startswith(_ARCHIVE):
        return None
    where = source.name
    if moved < 0:
        message = f"{-moved:,} bytes are missing inside: the download was resumed at a wrong byte"
        return Malformed(message, where=where, hint="download it again from the start")
    begins = read(source, moved, len(_ARCHIVE)) == _ARCHIVE
    if not begins:
        message = f"{moved:,} bytes come twice: the download was resumed at a wrong byte"
        return Malformed(message, where=where, hint="download it again from the start")
    if moved * 2 == source.nbytes:
        message = f"the same archive twice, one behind the other: {moved:,} bytes each"
        hint = f"keep the first {moved:,} bytes, or download it again"
        return Malformed(message, where=where, hint=hint)
    return Unsupported(
        f"several archives, one behind the other; the last begins at byte {moved:,}",
        where=where,
        hint="a .distcp file of a distributed checkpoint (DCP) is like that: pass its folder",
    )


def _moved(source: Source) -> int:
    """Return by how many bytes the last archive is behind its recorded position; 0 if none."""
    length = min(source.nbytes, _LOOK + END.size)
    base = source.nbytes - length
    tail = read(source, base, length)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + END.size > len(tail):
        return 0
    end = END.unpack_from(tail, at)
    if at >= LOCATOR64.size + END64.size:
        locator = LOCATOR64.unpack_from(tail, at - LOCATOR64.size)
        if locator[0] == b"PK\6\7":
            return base + at - LOCATOR64.size - END64.size - int(locator[2])
    return base + at - int(end[5]) - int(end[6])


def _twice(source: Source, start: bytes) -> CgptError | None:
    """Return the error for any other file whose second half begins like the first."""
    half, odd = divmod(source.nbytes, 2)
    size = min(len(start), half, 256)
    if odd or size < _MANY or len(set(start[:size])) < _MANY:
        return None
    if read(source, half, size) != start[:size]:
        return None
    message = f"the same content twice, one behind the other: {half:,} bytes each"
    return Malformed(
        message, where=source.name, hint=f"keep the first {half:,} bytes, or download it again"
    )

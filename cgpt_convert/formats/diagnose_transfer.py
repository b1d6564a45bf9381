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

_BINARY = "copy or download the file again in binary mode"
_FROM_START = "download the file again from the start"
_CONVERTED = "the file was converted as if it were text"
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
    """Return the error for a file that was converted as if it were text."""
    where = source.name
    if start.startswith(_BOM) and start[len(_BOM) :].startswith(_MAGIC):
        message = f"{_CONVERTED}: a byte order mark (UTF-8) was added at its start"
        return Malformed(message, where=where, hint=_BINARY)
    if _is_recoded(start):
        message = f"{_CONVERTED}: from Latin-1 to UTF-8"
        return Malformed(message, where=where, hint=_BINARY)
    if start.count(b"\xef\xbf\xbd") >= _MANY:
        message = f"{_CONVERTED}: bytes were replaced by U+FFFD"
        return Malformed(message, where=where, hint=_BINARY)
    if b"\0" in start and _has_changed_lines(source):
        message = f"{_CONVERTED}: line ends were changed from LF to CR LF"
        hint = f"{_BINARY}: set FTP to binary, or mark the file as binary in .gitattributes"
        return Malformed(message, where=where, hint=hint)
    if _is_base64(start):
        hint = "decode it first: base64 -d FILE > model"
        return Unsupported("the file is encoded as base64", where=where, hint=hint)
    return None


def _is_recoded(start: bytes) -> bool:
    """Return whether there are many bytes from 0x80 on, and all look like Latin-1 in UTF-8."""
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
        message = f"{-moved:,} bytes are missing inside the file: the download was resumed wrongly"
        return Malformed(message, where=where, hint=_FROM_START)
    begins = read(source, moved, len(_ARCHIVE)) == _ARCHIVE
    if not begins:
        message = f"{moved:,} bytes occur twice in the file: the download was resumed wrongly"
        return Malformed(message, where=where, hint=_FROM_START)
    if moved * 2 == source.nbytes:
        message = f"the file contains the same archive twice, {moved:,} bytes each"
        return Malformed(message, where=where, hint=_keeping(moved))
    return Unsupported(
        f"the file contains several archives; the last one starts at byte {moved:,}",
        where=where,
        hint="if it is a .distcp file of a distributed checkpoint (DCP), pass its folder",
    )


def _keeping(nbytes: int) -> str:
    return f"keep the first {nbytes:,} bytes, or download the file again"


def _moved(source: Source) -> int:
    """Return how many bytes the last archive is after its recorded position; 0 if none."""
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
    """Return the error for any other file whose second half starts like the first."""
    half, odd = divmod(source.nbytes, 2)
    size = min(len(start), half, 256)
    if odd or size < _MANY or len(set(start[:size])) < _MANY:
        return None
    if read(source, half, size) != start[:size]:
        return None
    message = f"the file contains the same content twice, {half:,} bytes each"
    return Malformed(message, where=source.name, hint=_keeping(half))

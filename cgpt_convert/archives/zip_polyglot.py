"""Detection of ZIP archives after or inside other data, and of several archives in one file.

Different readers find different data in such files. Every reader starts from the end record
(APPNOTE.TXT 4.3.16) in the last 64 KiB. Python's zipfile and compatible readers use the directory
directly before the record, others the one at the recorded offset, or they continue to the zip64
record.
"""

from __future__ import annotations

from cgpt_convert.archives.zip_archive import Archive
from cgpt_convert.archives.zip_directory import END, END64, LOCAL, LOCATOR64
from cgpt_convert.core.errors import Malformed
from cgpt_convert.core.text import quoted
from cgpt_convert.sources.local import Source, read
from cgpt_convert.sources.unpack import SourceSlice

END_NBYTES = END.size
_COMMENT_NBYTES = 0xFFFF
_LEAST_NBYTES = 98  # of a ZIP with one record; torch's padding is shorter (alignment to 64 bytes)
_FULL = 0xFFFFFFFF


def find_zip(source: Source) -> int | None:
    """Return where a reader would find the end record of a ZIP in `source`; None if it has none."""
    size = min(source.nbytes, END.size + _COMMENT_NBYTES)
    base = source.nbytes - size
    tail = read(source, base, size)
    at = len(tail)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        if at + END.size <= len(tail) and _has_directory(
            source, tail[at : at + END.size], base + at
        ):
            return base + at
    return None


def refuse_zip_behind(source: Source) -> None:
    """Raise Malformed if a file that does not begin as a ZIP ends as one."""
    if find_zip(source) is not None:
        raise Malformed("a zip archive follows other data, so readers disagree about the file")


def refuse_hidden_zips(archive: Archive) -> None:
    """Raise Malformed if the extra field of a local header contains a ZIP."""
    for member in archive.members.values():
        start = member.header_offset + LOCAL.size + len(member.name.encode())
        nbytes = member.offset - start
        if nbytes >= _LEAST_NBYTES and b"PK\5\6" in read(archive.source, start, nbytes):
            message = f"the local header of the record {quoted(member.name)} contains a zip archive"
            raise Malformed(message)


def _has_directory(source: Source, record: bytes, position: int) -> bool:
    """Return whether any reader finds a directory from this end record."""
    nbytes, offset = END.unpack(record)[5:7]
    locator = position - LOCATOR64.size
    if locator >= 0 and read(source, locator, 4) == b"PK\6\7":
        return True
    starts = {position - nbytes, offset} if nbytes else set()
    return _FULL in (nbytes, offset) or any(
        0 <= start <= source.nbytes - 4 and read(source, start, 4) == b"PK\1\2" for start in starts
    )


_MOST = 1_000_000  # archives in one file; each contains a tensor


def archives(source: Source) -> list[SourceSlice]:
    """Return the archives that fill the file if there are at least two, else an empty list."""
    slices: list[SourceSlice] = []
    end = source.nbytes
    while end:
        start = _start(source, end)
        if start is None or len(slices) == _MOST:
            return []
        if not start and not slices:
            return []  # the usual file of one archive
        slices.append(SourceSlice(source, start, end - start, f"{source.name}[byte {start:,}]"))
        end = start
    return slices[::-1]


def _start(source: Source, end: int) -> int | None:
    """Return the start of the archive that ends at byte `end`; None if no archive ends there."""
    at = end - END.size
    if at < 0:
        return None
    magic, *_, nbytes, offset, comment = END.unpack(read(source, at, END.size))
    if magic != b"PK\5\6" or comment:
        return None
    wide = at - LOCATOR64.size - END64.size
    if wide >= 0 and read(source, at - LOCATOR64.size, 4) == b"PK\6\7":
        magic, *_, nbytes, offset = END64.unpack(read(source, wide, END64.size))
        if magic != b"PK\6\6":
            return None
        at = wide
    start = at - int(nbytes) - int(offset)
    if start < 0 or read(source, start, 4) not in (b"PK\3\4", b"PK\5\6", b"PK\6\6"):
        return None
    return start

"""Detection of ZIP archives after or inside other data, which make readers open different files.

Every reader starts from the end record (APPNOTE.TXT 4.3.16) in the last 64 KiB. Python's zipfile
and compatible readers use the directory directly before the record, others the one at the recorded
offset, or they continue to the zip64 record.
"""

from __future__ import annotations

import struct

from cgpt_convert.archives.zip_archive import Archive
from cgpt_convert.core.errors import Malformed
from cgpt_convert.core.text import printable
from cgpt_convert.sources.local import Source, read

_END = struct.Struct("<4s4H2LH")  # 4.3.16, without the comment
END_NBYTES = _END.size
_LOCATOR64_NBYTES = 20  # 4.3.15
_COMMENT_NBYTES = 0xFFFF
_LOCAL_NBYTES = 30  # 4.3.7, a local header without its name and extra field
_LEAST_NBYTES = 98  # of a zip with one record; torch pads by less, to multiples of 64 bytes
_FULL = 0xFFFFFFFF


def find_zip(source: Source) -> int | None:
    """Return where a reader would find the end record of a ZIP in `source`; None if nowhere."""
    size = min(source.nbytes, _END.size + _COMMENT_NBYTES)
    base = source.nbytes - size
    tail = read(source, base, size)
    at = len(tail)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        if at + _END.size <= len(tail) and _has_directory(
            source, tail[at : at + _END.size], base + at
        ):
            return base + at
    return None


def refuse_zip_behind(source: Source) -> None:
    """Raise Malformed if a file that does not begin as a ZIP ends as one."""
    if find_zip(source) is not None:
        raise Malformed("a zip archive behind other data: readers disagree what the file is")


def refuse_hidden_zips(archive: Archive) -> None:
    """Raise Malformed if the extra field of a local header contains a ZIP."""
    for member in archive.members.values():
        start = member.header_offset + _LOCAL_NBYTES + len(member.name.encode())
        nbytes = member.offset - start
        if nbytes >= _LEAST_NBYTES and b"PK\5\6" in read(archive.source, start, nbytes):
            raise Malformed(f"a zip archive inside the header of {printable(member.name)}")


def _has_directory(source: Source, record: bytes, position: int) -> bool:
    """Return whether some reader finds a directory by this end record."""
    nbytes, offset = _END.unpack(record)[5:7]
    locator = position - _LOCATOR64_NBYTES
    if locator >= 0 and read(source, locator, 4) == b"PK\6\7":
        return True
    starts = {position - nbytes, offset} if nbytes else set()
    return _FULL in (nbytes, offset) or any(
        0 <= start <= source.nbytes - 4 and read(source, start, 4) == b"PK\1\2" for start in starts
    )

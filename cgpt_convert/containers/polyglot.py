"""A zip that follows other bytes: some readers open the one, some the other."""

from __future__ import annotations

from cgpt_convert.errors import Malformed
from cgpt_convert.source import Source, read

_END_NBYTES = 22  # APPNOTE.TXT 4.3.16, without the comment
_COMMENT_NBYTES = 0xFFFF
_NBYTES = slice(12, 16)  # of the directory


def refuse_zip_behind(source: Source) -> None:
    """Raise Malformed if the file ends as a zip does; for files that do not begin as one."""
    size = min(source.nbytes, _END_NBYTES + _COMMENT_NBYTES)
    tail = read(source, source.nbytes - size, size)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END_NBYTES > len(tail):
        return
    nbytes = int.from_bytes(tail[at:][_NBYTES], "little")
    start = source.nbytes - size + at - nbytes
    if start >= 0 and nbytes and read(source, start, 4) == b"PK\1\2":
        raise Malformed("a zip archive behind other data: readers disagree what the file is")

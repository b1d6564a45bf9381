"""Files of several concatenated ZIP archives, as torch.distributed.checkpoint writes them.

Its `.metadata` file has the offset of each archive, and a reader opens each separately.
"""

from __future__ import annotations

import struct

from cgpt_convert.sources.local import Source, read
from cgpt_convert.sources.unpack import SourceSlice

_END = struct.Struct("<4s4H2LH")  # APPNOTE.TXT 4.3.16
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_LOCATOR64_NBYTES = 20  # 4.3.15
_MOST = 1_000_000  # archives in one file; one is a tensor


def archives(source: Source) -> list[SourceSlice]:
    """Return the archives that fill the file if there are at least two, else an empty list."""
    found: list[SourceSlice] = []
    end = source.nbytes
    while end:
        start = _start(source, end)
        if start is None or len(found) == _MOST:
            return []
        if not start and not found:
            return []  # the usual file of one archive
        found.append(SourceSlice(source, start, end - start, f"{source.name}[byte {start:,}]"))
        end = start
    return found[::-1]


def _start(source: Source, end: int) -> int | None:
    """Return the start of the archive that ends at byte `end`; None if no archive ends there."""
    at = end - _END.size
    if at < 0:
        return None
    magic, *_, nbytes, offset, comment = _END.unpack(read(source, at, _END.size))
    if magic != b"PK\5\6" or comment:
        return None
    wide = at - _LOCATOR64_NBYTES - _END64.size
    if wide >= 0 and read(source, at - _LOCATOR64_NBYTES, 4) == b"PK\6\7":
        magic, *_, nbytes, offset = _END64.unpack(read(source, wide, _END64.size))
        if magic != b"PK\6\6":
            return None
        at = wide
    start = at - int(nbytes) - int(offset)
    if start < 0 or read(source, start, 4) not in (b"PK\3\4", b"PK\5\6", b"PK\6\6"):
        return None
    return start

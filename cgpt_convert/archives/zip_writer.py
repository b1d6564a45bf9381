"""Layout of a ZIP archive of stored members, computed before writing.

The bytes equal those that Python's zipfile writes for `numpy.savez`: zip64 sizes in every local
header, elsewhere only where needed, and the earliest date. Sizes precede the data and the sink
fills in the CRC-32, so there are no data descriptors and every reader can stream the file. Section
numbers refer to PKWARE's APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from cgpt_convert.archives.zip_directory import END, END64, LOCATOR64
from cgpt_convert.plan import Crc32, Part, part_nbytes

_VERSION = 45  # 4.4.3.2: zip64
_UNIX = 3 << 8  # 4.4.2
_UTF8 = 1 << 11  # 4.4.4
_STORED = 0
_DATE = 1 << 5 | 1  # 4.4.6: 1980-01-01, the earliest there is
_MODE = 0o600 << 16  # 4.4.15, as zipfile
_LIMIT, _LIMIT_COUNT = (1 << 31) - 1, (1 << 16) - 1  # zipfile's ZIP64_LIMIT, ZIP_FILECOUNT_LIMIT
_FULL = 0xFFFFFFFF
_EXTRA64 = 1  # 4.5.3
_CRC = 4  # bytes


class _Entry(NamedTuple):
    name: bytes
    flags: int
    nbytes: int
    header_offset: int
    crc: Crc32


def stored(members: Iterable[tuple[str, tuple[Part, ...]]]) -> tuple[Part, ...]:
    """Return the parts of the archive with these members, given as pairs of name and parts."""
    parts: list[Part] = []
    entries: list[_Entry] = []
    offset = 0
    for name, content in members:
        crc = Crc32(len(parts) + 3, len(parts) + 3 + len(content))  # three parts of local header
        raw = name.encode()
        flags = 0 if name.isascii() else _UTF8
        entry = _Entry(raw, flags, sum(map(part_nbytes, content)), offset, crc)
        head, tail = _local_header(entry)
        parts += (head, crc, tail, *content)
        entries.append(entry)
        offset += len(head) + _CRC + len(tail) + entry.nbytes
    directory: list[Part] = []
    nbytes = 0
    for entry in entries:
        head, tail = _central_header(entry)
        directory += (head, entry.crc, tail)
        nbytes += len(head) + _CRC + len(tail)
    return (*parts, *directory, _end(len(entries), nbytes, offset))


def _local_header(entry: _Entry) -> tuple[bytes, bytes]:
    """Return the local header (4.3.7), before and after the CRC-32.

    Sizes are in the zip64 field even if they are small, as NumPy writes them (its issue 10776).
    """
    extra = struct.pack("<2H2Q", _EXTRA64, 16, entry.nbytes, entry.nbytes)
    return (
        struct.pack("<4s5H", b"PK\3\4", _VERSION, entry.flags, _STORED, 0, _DATE),
        struct.pack("<2L2H", _FULL, _FULL, len(entry.name), len(extra)) + entry.name + extra,
    )


def _central_header(entry: _Entry) -> tuple[bytes, bytes]:
    """Return the central header (4.3.12), before and after the CRC-32."""
    wide = [entry.nbytes] * 2 if entry.nbytes > _LIMIT else []
    size = _FULL if wide else entry.nbytes
    offset = entry.header_offset
    if offset > _LIMIT:
        wide.append(offset)
        offset = _FULL
    extra = struct.pack(f"<2H{len(wide)}Q", _EXTRA64, 8 * len(wide), *wide) if wide else b""
    versions = (_VERSION | _UNIX, _VERSION)
    lengths = (len(entry.name), len(extra), 0)
    return (
        struct.pack("<4s6H", b"PK\1\2", *versions, entry.flags, _STORED, 0, _DATE),
        struct.pack("<2L5H2L", size, size, *lengths, 0, 0, _MODE, offset) + entry.name + extra,
    )


def _end(count: int, nbytes: int, offset: int) -> bytes:
    """Return the end record (4.3.16), preceded by 4.3.14 and 4.3.15 if a value needs them."""
    wide = b""
    if count > _LIMIT_COUNT or offset > _LIMIT or nbytes > _LIMIT:
        versions = (_VERSION, _VERSION)
        wide = END64.pack(
            b"PK\6\6", 44, *versions, 0, 0, count, count, nbytes, offset
        ) + LOCATOR64.pack(b"PK\6\7", 0, offset + nbytes, 1)
    count = min(count, _LIMIT_COUNT)
    narrow = (min(nbytes, _FULL), min(offset, _FULL))
    return wide + END.pack(b"PK\5\6", 0, 0, count, count, *narrow, 0)

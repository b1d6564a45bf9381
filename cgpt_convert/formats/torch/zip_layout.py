"""Layout of a ZIP archive of stored records as torch writes it, computed before writing.

The bytes equal those of caffe2/serialize/inline_container.cc over third_party/miniz-3.0.2: every
record's data starts at a multiple of 64, sizes and CRC-32 follow the data, there is no date, and
the zip64 end record is always present. torch computes offsets from exactly this layout
(torch/serialization.py `_get_offset`). Section numbers refer to PKWARE's APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from cgpt_convert.plan import Crc32, Part, part_nbytes

ALIGNMENT = 64  # bytes; torch's default, which it records in `.storage_alignment`

_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11  # 4.4.4; torch sets the latter for ASCII names, too
_FULL = 0xFFFFFFFF  # "the value is in the zip64 field"
_FULL_COUNT = 0xFFFF
_EXTRA64 = 1  # 4.5.3
_LOCAL_NBYTES = 30  # 4.3.7, less the name and the extra fields
_EXTRA_NBYTES = 4  # 4.5.1: kind and size of an extra field
_MADE_BY = 3 << 8 | 30  # 4.4.2, of the archive's end only: Unix, version 3.0
_NEEDED = 45  # 4.4.3.2: zip64; records say 0


class _Record(NamedTuple):
    name: bytes
    nbytes: int
    header_offset: int
    crc: Crc32

    @property
    def flags(self) -> int:
        return _UTF8 | (_DESCRIPTOR if self.nbytes else 0)

    @property
    def wide(self) -> bool:
        """Whether there are numbers that need 64 bits."""
        return max(self.nbytes, self.header_offset) >= _FULL


def stored(records: Iterable[tuple[str, Part]]) -> tuple[Part, ...]:
    """Return the parts of the archive with these records, given as pairs of name and content."""
    parts: list[Part] = []
    entries: list[_Record] = []
    offset = 0
    for name, content in records:
        crc = Crc32(len(parts) + 1, len(parts) + 2)  # the content follows its header
        entry = _Record(name.encode(), part_nbytes(content), offset, crc)
        added = (_local_header(entry), content, *_descriptor(entry))
        parts += added
        entries.append(entry)
        offset += sum(map(part_nbytes, added))
    directory = [part for entry in entries for part in _central_header(entry)]
    nbytes = sum(map(part_nbytes, directory))
    return (*parts, *directory, end_record(len(entries), nbytes, offset))


def _local_header(entry: _Record) -> bytes:
    """Return the local header (4.3.7), padded by an extra field so that the data is aligned."""
    extra = _extra64(entry, compressed=0)  # miniz does not know that size yet
    head = _LOCAL_NBYTES + len(entry.name) + len(extra) + _EXTRA_NBYTES
    padding = -(entry.header_offset + head) % ALIGNMENT
    extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    fields = (b"PK\3\4", 0, entry.flags, 0, 0, 0, 0, 0, 0, len(entry.name), len(extra))
    return struct.pack("<4s5H3L2H", *fields) + entry.name + extra


def _extra64(entry: _Record, compressed: int) -> bytes:
    """Return the zip64 field (4.5.3) for large values; miniz also writes it in local headers."""
    sizes = (entry.nbytes, compressed) if entry.nbytes >= _FULL else ()
    offset = (entry.header_offset,) if entry.header_offset >= _FULL else ()
    fields = (*sizes, *offset)
    return struct.pack(f"<2H{len(fields)}Q", _EXTRA64, 8 * len(fields), *fields) if fields else b""


def _descriptor(entry: _Record) -> tuple[Part, ...]:
    """Return the data descriptor (4.3.9); an empty record has none."""
    if not entry.nbytes:
        return ()
    sizes = struct.pack("<2Q" if entry.wide else "<2L", entry.nbytes, entry.nbytes)
    return (b"PK\7\x08", entry.crc, sizes)


def _central_header(entry: _Record) -> tuple[Part, ...]:
    """Return the central header (4.3.12)."""
    extra = _extra64(entry, compressed=entry.nbytes)
    size, offset = min(entry.nbytes, _FULL), min(entry.header_offset, _FULL)
    lengths = (len(entry.name), len(extra), 0)
    return (
        struct.pack("<4s6H", b"PK\1\2", 0, 0, entry.flags, 0, 0, 0),
        entry.crc,
        struct.pack("<2L5H2L", size, size, *lengths, 0, 0, 0, offset) + entry.name + extra,
    )


def end_record(count: int, nbytes: int, offset: int) -> bytes:
    """Return zip64 end record, its locator and end record (4.3.14 to 4.3.16)."""
    versions = (_MADE_BY, _NEEDED)
    wide = ("<4sQ2H2L4Q", b"PK\6\6", 44, *versions, 0, 0, count, count, nbytes, offset)
    locator = ("<4sLQL", b"PK\6\7", 0, offset + nbytes, 1)
    count = min(count, _FULL_COUNT)
    narrow = (min(nbytes, _FULL), min(offset, _FULL))
    end = ("<4s4H2LH", b"PK\5\6", 0, 0, count, count, *narrow, 0)
    return b"".join(struct.pack(*fields) for fields in (wide, locator, end))

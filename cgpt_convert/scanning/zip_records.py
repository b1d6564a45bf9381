"""The records of a zip archive as sources to scan."""

from __future__ import annotations

from cgpt_convert.archives.zip_archive import Archive
from cgpt_convert.archives.zip_directory import STORED
from cgpt_convert.core.errors import Malformed
from cgpt_convert.formats.file_kinds import HEAD
from cgpt_convert.sources.local import CHUNK, MemoryBytes, Source, read
from cgpt_convert.sources.unpack import SourceSlice, UnpackLimit, inflated

HELD = 16 << 20  # bytes; unpacked data is read several times, not in order


def opened(archive: Archive, name: str, label: str, room: UnpackLimit) -> Source:
    """Return the bytes of a record, inflated if necessary; `room` limits inflation.

    Small records are kept in memory since they are read several times: stored records up to the
    size of a detection read, deflated records up to one chunk.
    """
    member = archive.members[name]
    if member.method == STORED:
        source: Source = SourceSlice(archive.source, member.offset, member.nbytes, label)
        return in_memory(source) if member.nbytes <= HEAD else source
    packed = SourceSlice(archive.source, member.offset, member.compressed, label)
    source = inflated(packed, member.nbytes, room)
    return in_memory(source)


def in_memory(source: Source, most: int = CHUNK) -> Source:
    """Return the source read into memory; as it is if damaged or larger than `most` bytes."""
    if source.nbytes > most:
        return source
    try:
        return MemoryBytes(source.name, read(source, 0, source.nbytes))
    except Malformed:
        return source


def crc32(source: Source) -> int:
    """Return the CRC-32 of all bytes."""
    import zlib

    crc, at = 0, 0
    while at < source.nbytes:
        size = min(CHUNK, source.nbytes - at)
        crc = zlib.crc32(read(source, at, size), crc)
        at += size
    return crc

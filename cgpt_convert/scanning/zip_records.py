"""The records of a zip as sources to look into."""

from __future__ import annotations

from cgpt_convert.archives.zip_archive import Archive
from cgpt_convert.archives.zip_directory import STORED
from cgpt_convert.core.errors import Malformed
from cgpt_convert.formats.detect import HEAD
from cgpt_convert.sources.local import CHUNK, MemoryBytes, Source, read
from cgpt_convert.sources.unpack import Room, Window, inflated

HELD = 16 << 20  # bytes: what is unpacked is read several times, forwards and back


def opened(archive: Archive, name: str, label: str, room: Room) -> Source:
    """The bytes of a record, inflated if need be; `room` is what that may take.

    Small ones are in memory, for they are read several times: of stored ones those that are read as
    a whole anyway, of deflated ones those that one step inflates.
    """
    member = archive.members[name]
    if member.method == STORED:
        source: Source = Window(archive.source, member.offset, member.nbytes, label)
        return held(source) if member.nbytes <= HEAD else source
    packed = Window(archive.source, member.offset, member.compressed, label)
    source = inflated(packed, member.nbytes, room)
    return held(source)


def held(source: Source, most: int = CHUNK) -> Source:
    """Return the bytes in memory; a source of more than `most` bytes or a damaged one as it is."""
    if source.nbytes > most:
        return source
    try:
        return MemoryBytes(source.name, read(source, 0, source.nbytes))
    except Malformed:
        return source


def crc32(source: Source) -> int:
    """The CRC-32 of all of it."""
    import zlib

    crc, at = 0, 0
    while at < source.nbytes:
        size = min(CHUNK, source.nbytes - at)
        crc = zlib.crc32(read(source, at, size), crc)
        at += size
    return crc

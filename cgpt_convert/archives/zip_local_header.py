"""Local headers of ZIP records, which give the start of the data. Numbers: APPNOTE.TXT."""

from __future__ import annotations

import struct

from cgpt_convert.archives.zip_directory import DESCRIPTOR, FULL32, ZipMember, widen
from cgpt_convert.core.errors import Malformed
from cgpt_convert.sources.local import Source, read

LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7
DESCRIPTOR_SIZES = (0, 12, 16, 20, 24)  # 4.3.9: with or without signature, 32 or 64 bits


def with_data_offset(source: Source, member: ZipMember, limit: int) -> ZipMember:
    """Return the member with its data offset, after checking its local header.

    The central entry does not give the start of the data, because torch pads the local header only.
    """
    place = f"{source.name}[{member.name}]"
    raw = member.name.encode()
    head = LOCAL.size + len(raw)
    if member.header_offset + head > limit:
        raise Malformed("a record outside the archive", where=place)
    header = read(source, member.header_offset, head)
    magic, _, flags, method, _, _, crc, compressed, nbytes, n_name, n_extra = LOCAL.unpack_from(
        header
    )
    if magic != b"PK\3\4" or header[LOCAL.size :] != raw or n_name != len(raw):
        raise Malformed("the local header names another record", where=place)
    if flags != member.flags or method != member.method:
        raise Malformed("the local header has other flags than the directory", where=place)
    offset = member.header_offset + head + n_extra
    if offset + member.compressed > limit:
        raise Malformed("a record outside the archive", where=place)
    deferred = flags & DESCRIPTOR and not (crc or compressed or nbytes)  # 4.4.4, bit 3
    if not deferred:
        if FULL32 in (nbytes, compressed):
            extra = read(source, member.header_offset + head, n_extra)
            nbytes, compressed = widen(place, extra, [nbytes, compressed])
        if (crc, compressed, nbytes) != (member.crc32, member.compressed, member.nbytes):
            raise Malformed("the local header has other sizes than the directory", where=place)
    return member._replace(offset=offset)

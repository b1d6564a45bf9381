"""The structures of a ZIP: end record, central directory, local headers.

Section numbers refer to PKWARE's APPNOTE.TXT 6.3.10.

Python's zipfile, torch's miniz and other readers disagree about files with two directories, or two
names or sizes for a record. This parser rejects such files instead of interpreting them.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from weakref import WeakKeyDictionary

from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.limits import DEFLATE_RATIO, DIRECTORY_BYTES, MEMBERS
from cgpt_convert.core.text import quoted
from cgpt_convert.sources.local import Source, read

# The layouts of a ZIP's structures, each with its signature first and without names and comments
LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7
DESCRIPTORS = (struct.Struct("<4s3L"), struct.Struct("<4sL2Q"))  # 4.3.9; the second is zip64's
CENTRAL = struct.Struct("<4s6H3L5H2L")  # 4.3.12
END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
LOCATOR64 = struct.Struct("<4sLQL")  # 4.3.15
END = struct.Struct("<4s4H2LH")  # 4.3.16
DESCRIPTOR_SIZES = (0, 12, 16, 20, 24)  # 4.3.9: with or without signature, 32 or 64 bits
_EXTRA64 = 1  # 4.5.3
_UNICODE_PATH = 0x7075  # 4.6.9; some readers use this name
_FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF  # "the value is in the zip64 record"

STORED, DEFLATED = 0, 8
_ENCRYPTED, DESCRIPTOR, _UTF8 = 1 << 0, 1 << 3, 1 << 11  # 4.4.4
_DEFLATE_LEVEL = 1 << 1 | 1 << 2
_SHOWN = 200  # characters of a name, in errors
_SYMLINK, _TYPE_BITS = 0o120000, 0o170000  # the high half of the external attributes, from Unix


class ZipMember(NamedTuple):
    """A record. `offset` is of its first data byte; `compressed` equals `nbytes` when stored."""

    name: str
    header_offset: int
    offset: int
    nbytes: int
    compressed: int
    method: int
    flags: int
    crc32: int


class NoDirectory(Malformed):
    """The ZIP has no central directory at its end: it is probably truncated."""


class DirectoryLocation(NamedTuple):
    """The location of the central directory."""

    offset: int
    nbytes: int
    entries: int
    tail: int  # bytes after the end record and its comment


def find_end(source: Source) -> DirectoryLocation:
    """Return the end-of-central-directory record; there must be exactly one.

    It is parsed once per source, although both detection and reading need it.
    """
    end = _FOUND.get(source)
    if end is None:
        end = _FOUND[source] = _find_end(source)
    return end


_FOUND: WeakKeyDictionary[Source, DirectoryLocation] = WeakKeyDictionary()


def _find_end(source: Source) -> DirectoryLocation:
    length = min(source.nbytes, END.size + _FULL16)
    base = source.nbytes - length
    tail = read(source, base, length)
    at = tail.rfind(b"PK\5\6")  # every reader uses the last one
    end = _end_at(source, tail, base, at) if at >= 0 else None
    if end is None:
        message = "the zip archive is truncated: it has no central directory at its end"
        raise NoDirectory(message, where=source.name)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        if _is_end_at(source, tail, base, at):
            raise Malformed("the zip archive has two central directories", where=source.name)
    return end


def _is_end_at(source: Source, tail: bytes, base: int, at: int) -> bool:
    """Return whether `tail[at:]` is also an end record; that of a nested archive does not fit."""
    try:
        return _end_at(source, tail, base, at) is not None
    except CgptError:
        return False


def _end_at(source: Source, tail: bytes, base: int, at: int) -> DirectoryLocation | None:
    """Return the end record at `tail[at:]`; None if its directory does not precede it.

    The four bytes of the signature may occur by chance inside data.
    """
    if at + END.size > len(tail):
        return None
    _, disk, first_disk, here, count, nbytes, offset, comment = END.unpack_from(tail, at)
    position, after = base + at, len(tail) - at - END.size - comment
    if after < 0:
        return None
    locator_at = position - LOCATOR64.size
    if locator_at >= 0:
        locator = LOCATOR64.unpack(read(source, locator_at, LOCATOR64.size))
        if locator[0] == b"PK\6\7":
            if locator[2] != locator_at - END64.size:  # readers look there or follow the locator
                expected = locator_at - END64.size
                raise Malformed(
                    f"the zip64 end record is at byte {locator[2]:,}, expected at {expected:,}",
                    where=source.name,
                )
            return _end64(source, (disk, first_disk, here, count, nbytes, offset), locator, after)
    if offset + nbytes != position:
        return None
    if disk or first_disk or here != count:
        raise _split(source.name)
    return DirectoryLocation(offset, nbytes, count, after)


def _end64(
    source: Source, classic: tuple[int, ...], locator: tuple[bytes, int, int, int], after: int
) -> DirectoryLocation:
    _, locator_disk, at, disks = locator
    if locator_disk or disks > 1:
        raise _split(source.name)
    record = END64.unpack(read(source, at, END64.size))
    magic, size, _, _, disk, first_disk, here, count, nbytes, offset = record
    if magic != b"PK\6\6" or size != END64.size - 12 or offset + nbytes != at:
        raise Malformed("the zip64 end record contradicts the archive's layout", where=source.name)
    widths = (_FULL16, _FULL16, _FULL16, _FULL16, FULL32, FULL32)
    wide = (disk, first_disk, here, count, nbytes, offset)
    for narrow, full, value in zip(classic, widths, wide, strict=True):
        if narrow not in (full, value):
            raise Malformed(
                f"the end record says {narrow:,} where the zip64 end record says {value:,}",
                where=source.name,
            )
    if disk or first_disk or here != count:
        raise _split(source.name)
    return DirectoryLocation(offset, nbytes, count, after)


def _split(where: str) -> Unsupported:
    hint = "join the parts into one file: zip -s 0 FILE.zip --out WHOLE.zip"
    return Unsupported("the zip archive is split into parts", where=where, hint=hint)


def entries(source: Source, end: DirectoryLocation) -> list[ZipMember]:
    """Return the central directory's entries; `offset` is still that of the local header."""
    if end.entries > MEMBERS or end.nbytes > DIRECTORY_BYTES:
        raise Unsupported(
            f"the central directory has {end.entries:,} entries in {end.nbytes:,} bytes; "
            f"the limits are {MEMBERS:,} and {DIRECTORY_BYTES:,}",
            where=source.name,
        )
    data = read(source, end.offset, end.nbytes)
    members, at = [], 0
    for index in range(end.entries):
        if at + CENTRAL.size > len(data):
            raise Malformed(
                f"the central directory has {index:,} entries, the end record says {end.entries:,}",
                where=source.name,
            )
        fields = CENTRAL.unpack_from(data, at)
        lengths = fields[10:13]  # name, extra, comment
        name_at = at + CENTRAL.size
        at = name_at + sum(lengths)
        if fields[0] != b"PK\1\2" or at > len(data):
            message = f"entry {index + 1:,} of the central directory is damaged"
            raise Malformed(message, where=source.name)
        raw = data[name_at : name_at + lengths[0]]
        extra = data[name_at + lengths[0] : name_at + lengths[0] + lengths[1]]
        members.append(_entry(source.name, fields, raw, extra))
    if at != len(data):
        raise Malformed(
            f"the central directory has {len(data):,} bytes, its {end.entries:,} entries take "
            f"{at:,}",
            where=source.name,
        )
    return members


def _entry(where: str, fields: tuple[int, ...], raw: bytes, extra: bytes) -> ZipMember:
    flags, method, crc = fields[3], fields[4], fields[7]
    compressed, nbytes, disk, external, header = *fields[8:10], fields[13], fields[15], fields[16]
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise name_not_utf8(raw, where) from error
    place = f"{where}[{name[:_SHOWN]}]"
    nbytes, compressed, header = widen(place, extra, [nbytes, compressed, header])
    second = _extras(extra).get(_UNICODE_PATH)
    if second is not None and second[5:] != raw:  # after a version and a checksum
        raise Malformed("the record has two different names", where=place)
    if flags & _ENCRYPTED:
        hint = "decrypt the archive, for example: 7z x FILE"
        raise Unsupported("the record is encrypted", where=place, hint=hint)
    if method not in (STORED, DEFLATED):
        raise Unsupported(f"the compression method {method} is not supported", where=place)
    known = DESCRIPTOR | _UTF8 | (_DEFLATE_LEVEL if method == DEFLATED else 0)
    if flags & ~known:
        raise Unsupported(f"the zip flags 0x{flags:04x} are not supported", where=place)
    if disk:
        raise _split(place)
    if external >> 16 & _TYPE_BITS == _SYMLINK:
        raise Malformed("the record is a symbolic link", where=place)
    if method == STORED and compressed != nbytes:
        message = f"the record is not compressed but has two sizes, {compressed:,} and {nbytes:,}"
        raise Malformed(message, where=place)
    if nbytes > compressed * DEFLATE_RATIO:
        message = f"the record says that {compressed:,} bytes decompress to {nbytes:,}"
        raise Malformed(f"{message}, more than deflate can produce", where=place)
    return ZipMember(name, header, header, nbytes, compressed, method, flags, crc)


def name_not_utf8(raw: bytes, where: str) -> Malformed:
    """Return the error for a record name that is not UTF-8."""
    shown = quoted(raw[:80].decode("utf-8", "backslashreplace"))
    return Malformed(f"the record name {shown} is not valid UTF-8", where=where)


def widen(place: str, extra: bytes, values: list[int]) -> list[int]:
    """Replace each 0xFFFFFFFF in `values` by its 64-bit field in the zip64 extra record."""
    if FULL32 not in values:
        return values
    fields = _extras(extra).get(_EXTRA64, b"")
    wide = struct.unpack_from(f"<{len(fields) // 8}Q", fields)
    if len(wide) < values.count(FULL32):
        raise Malformed("the record refers to a zip64 size that is missing", where=place)
    following = iter(wide)
    return [next(following) if value == FULL32 else value for value in values]


def _extras(extra: bytes) -> dict[int, bytes]:
    """Return the extra fields by kind, the first of each; fields that do not parse are skipped."""
    fields: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        fields.setdefault(kind, extra[at + 4 : at + 4 + size])
        at += 4 + size
    return fields


def with_data_offset(source: Source, member: ZipMember, limit: int) -> ZipMember:
    """Return the member with its data offset, after checking its local header.

    The central entry does not give the start of the data, because torch pads the local header only.
    """
    place = f"{source.name}[{member.name}]"
    raw = member.name.encode()
    head = LOCAL.size + len(raw)
    if member.header_offset + head > limit:
        raise _outside(place, member.header_offset + head, limit)
    header = read(source, member.header_offset, head)
    magic, _, flags, method, _, _, crc, compressed, nbytes, n_name, n_extra = LOCAL.unpack_from(
        header
    )
    if magic != b"PK\3\4" or header[LOCAL.size :] != raw or n_name != len(raw):
        raise Malformed("the name in the local header is not that in the directory", where=place)
    if flags != member.flags or method != member.method:
        message = "the flags or method in the local header are not those in the directory"
        raise Malformed(message, where=place)
    offset = member.header_offset + head + n_extra
    if offset + member.compressed > limit:
        raise _outside(place, offset + member.compressed, limit)
    deferred = flags & DESCRIPTOR and not (crc or compressed or nbytes)  # 4.4.4, bit 3
    if not deferred:
        if FULL32 in (nbytes, compressed):
            extra = read(source, member.header_offset + head, n_extra)
            nbytes, compressed = widen(place, extra, [nbytes, compressed])
        if (crc, compressed, nbytes) != (member.crc32, member.compressed, member.nbytes):
            message = "the size or CRC-32 in the local header is not that in the directory"
            raise Malformed(message, where=place)
    return member._replace(offset=offset)


def _outside(where: str, end: int, limit: int) -> Malformed:
    message = f"the record ends at byte {end:,}, after the start of the directory at {limit:,}"
    return Malformed(message, where=where)

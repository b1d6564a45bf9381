"""PKZIP -> members as byte ranges, with what is odd about them.

We parse the directory ourselves and own every offset. Python's zipfile, torch's miniz and other
readers disagree about files with duplicate names, doubled directories or differing local headers;
a scanner and a loader that see different files are an attack, so such files are refused here.
Section numbers are those of PKWARE's APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import struct
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from cgpt_convert import findings
from cgpt_convert.errors import CgptError, Malformed, Unsupported
from cgpt_convert.findings import Finding
from cgpt_convert.limits import DEFLATE_RATIO, DIRECTORY_BYTES, MEMBERS, NAME_BYTES
from cgpt_convert.source import Deflated, Source, read

LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # 4.3.12
_END = struct.Struct("<4s4H2LH")  # 4.3.16
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_LOCATOR64 = struct.Struct("<4sLQL")  # 4.3.15
_EXTRA64 = 1  # 4.5.3
_UNICODE_PATH = 0x7075  # 4.6.9; some readers take the name that is here
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "the value is in the zip64 record"

STORED, DEFLATED = 0, 8
_ENCRYPTED, DESCRIPTOR, _UTF8 = 1 << 0, 1 << 3, 1 << 11  # 4.4.4
_DEFLATE_LEVEL = 1 << 1 | 1 << 2
_SYMLINK, _TYPE_BITS = 0o120000, 0o170000  # the high half of the external attributes, from Unix


class Member(NamedTuple):
    """A record. `offset` is of its first data byte; `compressed` equals `nbytes` when stored."""

    name: str
    header_offset: int
    offset: int
    nbytes: int
    compressed: int
    method: int
    flags: int
    crc32: int


@dataclass
class Archive:
    """A zip whose directory and local headers agree. `members` is in directory order."""

    source: Source
    members: dict[str, Member]
    findings: list[Finding] = field(default_factory=list)

    @cached_property
    def has_crcs(self) -> bool:
        """Does any record have a checksum? torch can be told to write 0 for all."""
        return any(member.crc32 for member in self.members.values())

    def crc32(self, name: str) -> int | None:
        """The member's checksum; None if the archive has none, or if it is unknown (-1)."""
        crc = self.members[name].crc32
        return crc if crc >= 0 and self.has_crcs else None

    def open(self, name: str) -> tuple[Source, int, int]:
        """Where to read the member's bytes: source, offset and size, inflating if need be."""
        member = self.members[name]
        if member.method == STORED:
            return self.source, member.offset, member.nbytes
        label = f"{self.source.name}[{name}]"
        inflating = Deflated(self.source, member.offset, member.compressed, member.nbytes, label)
        return inflating, 0, member.nbytes

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a small member; Unsupported if it has more than `most`."""
        source, offset, nbytes = self.open(name)
        if nbytes > most:
            raise Unsupported(f"{name} has {nbytes:,} bytes; at most {most:,} are read")
        return read(source, offset, nbytes)


class NoDirectory(Malformed):
    """The zip has no central directory, which stands at its end: most likely it is cut off."""


class End(NamedTuple):
    """Where the central directory is."""

    offset: int
    nbytes: int
    entries: int
    tail: int  # bytes after the end record and its comment


def open_archive(source: Source) -> Archive:
    """The archive in `source`, checked as a whole.

    Raises Malformed where the zip contradicts itself or readers would disagree about it,
    Unsupported for encryption, other compression methods and split archives.
    """
    end = find_end(source)
    members = [_with_data_offset(source, m, end.offset) for m in directory(source, end)]
    archive = Archive(source, {member.name: member for member in members})
    _check_names(source.name, members)
    if end.tail:
        archive.findings.append(Finding(findings.TRAILING, f"{end.tail:,} bytes"))
    _check_layout(archive, end.offset)
    squeezed = sum(member.method != STORED for member in members)
    if squeezed:
        archive.findings.append(Finding(findings.COMPRESSED, f"{squeezed} of {len(members)}"))
    return archive


def find_end(source: Source) -> End:
    """The end-of-central-directory record, of which there must be exactly one."""
    length = min(source.nbytes, _END.size + _FULL16)
    base = source.nbytes - length
    tail = read(source, base, length)
    at = tail.rfind(b"PK\5\6")  # every reader takes the last
    end = _end_at(source, tail, base, at) if at >= 0 else None
    if end is None:
        raise NoDirectory("no central directory: the zip archive is cut off", where=source.name)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        if _is_end_at(source, tail, base, at):
            raise Malformed("two central directories", where=source.name)
    return end


def _is_end_at(source: Source, tail: bytes, base: int, at: int) -> bool:
    """Is there a whole end record too? One of an archive inside a record tells other offsets."""
    try:
        return _end_at(source, tail, base, at) is not None
    except CgptError:
        return False


def _end_at(source: Source, tail: bytes, base: int, at: int) -> End | None:
    """The end record at `tail[at:]`, or None if the directory it tells of does not lie before it.

    The four bytes of the signature may occur by chance inside data.
    """
    if at + _END.size > len(tail):
        return None
    _, disk, first_disk, here, count, nbytes, offset, comment = _END.unpack_from(tail, at)
    position, after = base + at, len(tail) - at - _END.size - comment
    if after < 0:
        return None
    locator_at = position - _LOCATOR64.size
    if locator_at >= 0:
        locator = _LOCATOR64.unpack(read(source, locator_at, _LOCATOR64.size))
        if locator[0] == b"PK\6\7":
            if locator[2] != locator_at - _END64.size:  # some readers look there, some are told
                raise Malformed("the zip64 end record is not in its place", where=source.name)
            return _end64(source, (disk, first_disk, here, count, nbytes, offset), locator, after)
    if offset + nbytes != position:
        return None
    if disk or first_disk or here != count:
        raise Unsupported("a split zip archive", where=source.name)
    return End(offset, nbytes, count, after)


def _end64(
    source: Source, classic: tuple[int, ...], locator: tuple[bytes, int, int, int], after: int
) -> End:
    _, locator_disk, at, disks = locator
    if locator_disk or disks > 1:
        raise Unsupported("a split zip archive", where=source.name)
    record = _END64.unpack(read(source, at, _END64.size))
    magic, size, _, _, disk, first_disk, here, count, nbytes, offset = record
    if magic != b"PK\6\6" or size != _END64.size - 12 or offset + nbytes != at:
        raise Malformed("the zip64 end record does not fit the archive", where=source.name)
    widths = (_FULL16, _FULL16, _FULL16, _FULL16, _FULL32, _FULL32)
    wide = (disk, first_disk, here, count, nbytes, offset)
    for narrow, full, value in zip(classic, widths, wide, strict=True):
        if narrow not in (full, value):
            raise Malformed("the zip and zip64 end records disagree", where=source.name)
    if disk or first_disk or here != count:
        raise Unsupported("a split zip archive", where=source.name)
    return End(offset, nbytes, count, after)


def directory(source: Source, end: End) -> list[Member]:
    """The central directory's entries; their `offset` is still that of the local header."""
    if end.entries > MEMBERS or end.nbytes > DIRECTORY_BYTES:
        raise Unsupported(f"an archive of {end.entries:,} records", where=source.name)
    data = read(source, end.offset, end.nbytes)
    members, at = [], 0
    for _ in range(end.entries):
        if at + _CENTRAL.size > len(data):
            raise Malformed("the central directory is cut off", where=source.name)
        fields = _CENTRAL.unpack_from(data, at)
        lengths = fields[10:13]  # name, extra, comment
        name_at = at + _CENTRAL.size
        at = name_at + sum(lengths)
        if fields[0] != b"PK\1\2" or at > len(data):
            raise Malformed("the central directory is damaged", where=source.name)
        raw = data[name_at : name_at + lengths[0]]
        extra = data[name_at + lengths[0] : name_at + lengths[0] + lengths[1]]
        members.append(_entry(source.name, fields, raw, extra))
    if at != len(data):
        raise Malformed("the central directory has more bytes than entries", where=source.name)
    return members


def _entry(where: str, fields: tuple[int, ...], raw: bytes, extra: bytes) -> Member:
    flags, method, crc = fields[3], fields[4], fields[7]
    compressed, nbytes, disk, external, header = *fields[8:10], fields[13], fields[15], fields[16]
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"a record name that is not UTF-8: {raw[:80]!r}", where=where) from error
    place = f"{where}[{name}]"
    nbytes, compressed, header = _widen(place, extra, [nbytes, compressed, header])
    second = _extras(extra).get(_UNICODE_PATH)
    if second is not None and second[5:] != raw:  # after a version and a checksum
        raise Malformed("a record with two names", where=place)
    if flags & _ENCRYPTED:
        raise Unsupported("an encrypted record", where=place)
    if method not in (STORED, DEFLATED):
        raise Unsupported(f"compression method {method}", where=place)
    known = DESCRIPTOR | _UTF8 | (_DEFLATE_LEVEL if method == DEFLATED else 0)
    if flags & ~known:
        raise Unsupported(f"zip flags 0x{flags:04x}", where=place)
    if disk:
        raise Unsupported("a split zip archive", where=place)
    if external >> 16 & _TYPE_BITS == _SYMLINK:
        raise Malformed("a symbolic link inside the archive", where=place)
    if method == STORED and compressed != nbytes:
        raise Malformed("a stored record with two different sizes", where=place)
    if nbytes > compressed * DEFLATE_RATIO:
        raise Malformed("a record that claims more than deflate can expand to", where=place)
    return Member(name, header, header, nbytes, compressed, method, flags, crc)


def _widen(place: str, extra: bytes, values: list[int]) -> list[int]:
    """The values with each 0xFFFFFFFF replaced by its 64-bit field of the zip64 extra record."""
    if _FULL32 not in values:
        return values
    fields = _extras(extra).get(_EXTRA64, b"")
    wide = struct.unpack_from(f"<{len(fields) // 8}Q", fields)
    if len(wide) < values.count(_FULL32):
        raise Malformed("a zip64 size is missing", where=place)
    following = iter(wide)
    return [next(following) if value == _FULL32 else value for value in values]


def _extras(extra: bytes) -> dict[int, bytes]:
    """The extra fields by kind, the first of each; what does not parse is left out."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        found.setdefault(kind, extra[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def _with_data_offset(source: Source, member: Member, limit: int) -> Member:
    """The member with the offset of its data, once its local header agrees with the directory.

    The central entry cannot tell where the data starts: torch pads the local header alone.
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
        extra = read(source, member.header_offset + head, n_extra)
        nbytes, compressed = _widen(place, extra, [nbytes, compressed])
        if (crc, compressed, nbytes) != (member.crc32, member.compressed, member.nbytes):
            raise Malformed("the local header has other sizes than the directory", where=place)
    return member._replace(offset=offset)


def _check_names(where: str, members: list[Member]) -> None:
    seen: dict[str, str] = {}
    for member in members:
        name = member.name
        parts = name.removesuffix("/").split("/")
        if not name or len(name) > NAME_BYTES or "\0" in name or "\\" in name:
            raise Malformed(f"an unusable record name: {name[:80]!r}", where=where)
        if any(part in ("", ".", "..") for part in parts):
            raise Malformed(f"a record name that leaves its folder: {name[:80]!r}", where=where)
        # torch compares names without case, file systems may also normalise them
        folded = unicodedata.normalize("NFC", name.casefold())
        if folded in seen:
            raise Malformed(f"two records are named {seen[folded]!r} and {name!r}", where=where)
        seen[folded] = name


_DESCRIPTOR_SIZES = (0, 12, 16, 20, 24)  # 4.3.9: with or without signature, 32 or 64 bits


def _check_layout(archive: Archive, directory_offset: int) -> None:
    """Records must tile the file from byte 0 to the directory, descriptors aside."""
    at, gaps, described = 0, 0, False
    for member in sorted(archive.members.values(), key=lambda m: m.header_offset):
        place = f"{archive.source.name}[{member.name}]"
        if member.header_offset < at:
            raise Malformed("a record overlaps another", where=place)
        gaps += _gap(at, member.header_offset, described=described)
        at = member.offset + member.compressed
        described = bool(member.flags & DESCRIPTOR)
    gaps += _gap(at, directory_offset, described=described)
    if archive.members and min(m.header_offset for m in archive.members.values()):
        raise Malformed("bytes before the first record", where=archive.source.name)
    if gaps:
        archive.findings.append(Finding(findings.GAP, f"{gaps:,} bytes"))


def _gap(at: int, following: int, *, described: bool) -> int:
    return 0 if described and following - at in _DESCRIPTOR_SIZES else following - at

"""ZIP archives as byte ranges of members, with findings.

All offsets are computed here: each local header must agree with the directory, and records must
tile the file. An attacker can make a scanner and a loader see different files, so a file on which
readers would disagree is rejected. Section numbers refer to PKWARE's APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cached_property

from cgpt_convert.archives.zip_directory import (
    DESCRIPTOR,
    DESCRIPTOR_SIZES,
    STORED,
    ZipMember,
    entries,
    find_end,
    with_data_offset,
)
from cgpt_convert.core import findings
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.limits import NAME_BYTES
from cgpt_convert.core.text import quoted
from cgpt_convert.sources.local import Source, is_distant, read

SCRIPT = "TorchScript archive"  # display name of a torch ZIP that contains code
_SHOWN = 80  # characters of a record name, in errors


class Archive:
    """A ZIP whose directory and local headers agree. `members` is in directory order."""

    def __init__(
        self, source: Source, members: dict[str, ZipMember], findings: Iterable[Finding] = ()
    ) -> None:
        self.source = source
        self.members = members
        self.findings = list(findings)

    @cached_property
    def has_crcs(self) -> bool:
        """Whether any record has a checksum; torch has an option to write 0 for all."""
        return any(member.crc32 for member in self.members.values())

    def crc32(self, name: str) -> int | None:
        """Return the member's checksum; None if the archive has none, or if it is unknown (-1)."""
        crc = self.members[name].crc32
        return crc if crc >= 0 and self.has_crcs else None

    def open(self, name: str) -> tuple[Source, int, int]:
        """Return source, offset and size of the member's bytes, decompressed if needed."""
        member = self.members[name]
        if member.method == STORED:
            return self.source, member.offset, member.nbytes
        # imported here because most archives are not compressed
        from cgpt_convert.sources.inflate import DeflatedMember

        label = f"{self.source.name}[{name}]"
        inflating = DeflatedMember(
            self.source, member.offset, member.compressed, member.nbytes, label
        )
        return inflating, 0, member.nbytes

    def read(self, name: str, most: int) -> bytes:
        """Return the bytes of a small member; raise Unsupported if it has more than `most`."""
        source, offset, nbytes = self.open(name)
        if nbytes > most:
            raise Unsupported(
                f"the record has {nbytes:,} bytes, the limit is {most:,}",
                where=f"{self.source.name}[{name}]",
            )
        return read(source, offset, nbytes)


def open_archive(source: Source) -> Archive:
    """Open and check the archive in `source`.

    Raises Malformed if the ZIP contradicts itself or readers would disagree about it, Unsupported
    for encryption, other compression methods and split archives.
    """
    end = find_end(source)
    members = entries(source, end)
    disagreements: list[Finding] = []
    if is_distant(source):
        from cgpt_convert.archives.zip_lazy_headers import LazyHeaders

        source = late = LazyHeaders(source, members, end.offset)
        members, disagreements = late.members, late.findings()
    else:
        members = [with_data_offset(source, member, end.offset) for member in members]
    archive = Archive(source, {member.name: member for member in members}, disagreements)
    _check_names(source.name, members)
    if end.tail:
        archive.findings.append(Finding(findings.TRAILING, f"{end.tail:,} bytes"))
    _check_layout(archive, end.offset)
    squeezed = sum(member.method != STORED for member in members)
    if squeezed:
        detail = f"{squeezed:,} of {len(members):,} records"
        archive.findings.append(Finding(findings.COMPRESSED, detail))
    return archive


def _check_names(where: str, members: list[ZipMember]) -> None:
    seen: dict[str, str] = {}
    for member in members:
        name = member.name
        parts = name.removesuffix("/").split("/")
        if not name or len(name) > NAME_BYTES or "\0" in name or "\\" in name:
            message = f"the record name {quoted(name, _SHOWN)} is not valid"
            raise Malformed(message, where=where)
        if any(part in ("", ".", "..") for part in parts):
            message = f"the record name {quoted(name, _SHOWN)} is not a plain relative path"
            raise Malformed(message, where=where)
        # torch compares names without case, file systems may also normalise them
        folded = unicodedata.normalize("NFC", name.casefold())
        if folded in seen:
            both = f"{quoted(seen[folded])} and {quoted(name)}"
            message = f"the names of two records, {both}, are equal or differ only in case"
            raise Malformed(message, where=where)
        seen[folded] = name


def _check_layout(archive: Archive, directory_offset: int) -> None:
    """Check that records tile the file from byte 0 to the directory, except for descriptors."""
    at, gaps, described = 0, 0, False
    for member in sorted(archive.members.values(), key=lambda m: m.header_offset):
        place = f"{archive.source.name}[{member.name}]"
        if member.header_offset < at:
            message = f"the record at byte {member.header_offset:,} overlaps the one before"
            raise Malformed(message, where=place)
        gaps += _gap(at, member.header_offset, described=described)
        at = member.offset + member.compressed
        described = bool(member.flags & DESCRIPTOR)
    gaps += _gap(at, directory_offset, described=described)
    first = min((m.header_offset for m in archive.members.values()), default=0)
    if first:
        message = f"{first:,} bytes precede the first record of the archive"
        raise Malformed(message, where=archive.source.name)
    if gaps:
        archive.findings.append(Finding(findings.GAP, f"{gaps:,} bytes"))


def _gap(at: int, following: int, *, described: bool) -> int:
    return 0 if described and following - at in DESCRIPTOR_SIZES else following - at

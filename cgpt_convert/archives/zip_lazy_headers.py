"""Deferred checks of the local headers of a remote archive, each before its data is read.

Only the local header gives the exact start of a record's data, and reading hundreds of headers
takes hundreds of requests. But records tile the file, so the data of a record ends where the next
header starts, minus a descriptor of one of five sizes. torch aligns data to 64 bytes
(caffe2/serialize/inline_container.cc, `kFieldAlignment`), which at most one of the five sizes
satisfies. If none does, the header is read immediately.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from cgpt_convert.archives.zip_directory import (
    DESCRIPTOR,
    DESCRIPTOR_SIZES,
    LOCAL,
    ZipMember,
    with_data_offset,
)
from cgpt_convert.core import findings
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.findings import Finding
from cgpt_convert.sources.local import Source, expect

_ALIGNMENT = 64


class LazyHeaders:
    """The source of an archive's data. `members` have the offsets derived from the layout.

    `entries` are those of the directory, which begins at `end`.
    """

    distant = True  # see source.is_distant

    def __init__(self, source: Source, entries: Sequence[ZipMember], end: int) -> None:
        self.name, self.nbytes = source.name, source.nbytes
        self._source, self._end = source, end
        in_order = sorted(entries, key=lambda member: member.header_offset)
        following = [member.header_offset for member in in_order[1:]] + [end]
        self._unread: dict[int, ZipMember] = {}  # data offset -> entry
        offsets: dict[int, int] = {}  # header offset -> data offset
        for entry, after in zip(in_order, following, strict=True):
            offset = _data_offset(entry, after)
            if offset is None or offset in self._unread:
                offset = with_data_offset(source, entry, end).offset
            else:
                self._unread[offset] = entry
            offsets[entry.header_offset] = offset
        self.members = [m._replace(offset=offsets[m.header_offset]) for m in entries]
        self._offsets = sorted(self._unread)

    def findings(self) -> list[Finding]:
        """Return the finding that some headers were not checked, if that is so."""
        if not self._unread:
            return []
        detail = f"{len(self._unread):,} of {len(self.members):,} records"
        return [Finding(findings.LATE_HEADERS, f"{detail}; each is checked when its data is read")]

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Announce future reads, including the headers before the data."""
        whole = []
        for offset, nbytes in ranges:
            entry = self._unread.get(offset)
            first = entry.header_offset if entry else offset
            whole.append((first, offset + nbytes - first))
        expect((self._source, offset, nbytes) for offset, nbytes in whole)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` after checking the headers of the records there.

        Raises Malformed if one disagrees with the directory, Unsupported if it disagrees with the
        layout.
        """
        last = bisect.bisect_left(self._offsets, offset + len(buffer))
        for index in range(last - 1, -1, -1):
            at = self._offsets[index]
            entry = self._unread.get(at)
            if entry is not None and at + entry.compressed > offset:
                self._check(entry, at)
            if at <= offset:
                break
        self._source.readinto(offset, buffer)

    def _check(self, entry: ZipMember, offset: int) -> None:
        actual = with_data_offset(self._source, entry, self._end).offset
        if actual != offset:
            raise Unsupported(
                f"the data starts at byte {actual:,}, not at {offset:,} as in a regular layout",
                where=f"{self.name}[{entry.name}]",
                hint="add --download to fetch the whole file first",
            )
        self._unread.pop(offset, None)

    def check_unchanged(self) -> None:
        """Check the underlying file."""
        self._source.check_unchanged()


def _data_offset(entry: ZipMember, following: int) -> int | None:
    """Return where the data starts if the next record starts at `following`; None if unclear."""
    first = entry.header_offset + LOCAL.size + len(entry.name.encode())
    if not entry.flags & DESCRIPTOR and first + entry.compressed == following:
        return first
    sizes = DESCRIPTOR_SIZES if entry.flags & DESCRIPTOR else (0,)
    fitting = [following - entry.compressed - size for size in sizes]
    fitting = [offset for offset in fitting if offset >= first and offset % _ALIGNMENT == 0]
    return fitting[0] if len(fitting) == 1 else None

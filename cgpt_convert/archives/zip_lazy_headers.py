"""Local headers of a distant archive: not read to look, each one read before its record's data.

Where a record's data begin only its local header can tell, and to read hundreds of those is to
ask hundreds of times. But the records tile the file, so the next record's header says where this
one's data end, less a descriptor of one of five sizes; and torch lets data begin at multiples of
64 (caffe2/serialize/inline_container.cc, `kFieldAlignment`), which one of the five at most gives.
Where none does, the header is read at once.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence

from cgpt_convert.archives.zip_directory import DESCRIPTOR, Member
from cgpt_convert.archives.zip_local_header import DESCRIPTOR_SIZES, LOCAL, with_data_offset
from cgpt_convert.core import findings
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.findings import Finding
from cgpt_convert.sources.local import Source, expect

_ALIGNMENT = 64


class LateHeaders:
    """The source of an archive's data. `members` have the offsets that the layout tells.

    `entries` are the directory's, and `end` is where that begins.
    """

    distant = True  # see source.is_distant

    def __init__(self, source: Source, entries: Sequence[Member], end: int) -> None:
        self.name, self.nbytes = source.name, source.nbytes
        self._source, self._end = source, end
        in_order = sorted(entries, key=lambda member: member.header_offset)
        following = [member.header_offset for member in in_order[1:]] + [end]
        self._unread: dict[int, Member] = {}  # data offset -> entry
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
        """What is to be said of an archive of which headers were not read."""
        if not self._unread:
            return []
        detail = f"{len(self._unread)} of {len(self.members)} records; each is when its data are"
        return [Finding(findings.LATE_HEADERS, detail)]

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """What will be read, with the headers before it."""
        whole = []
        for offset, nbytes in ranges:
            entry = self._unread.get(offset)
            first = entry.header_offset if entry else offset
            whole.append((first, offset + nbytes - first))
        expect((self._source, offset, nbytes) for offset, nbytes in whole)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`, once the headers of the records there have been checked.

        Raises Malformed where one disagrees with the directory, Unsupported where it does with
        the layout.
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

    def _check(self, entry: Member, offset: int) -> None:
        found = with_data_offset(self._source, entry, self._end).offset
        if found != offset:
            raise Unsupported(
                f"its data begin at byte {found:,}, not {offset:,} as the other records tell",
                where=f"{self.name}[{entry.name}]",
                hint="--download reads such archives",
            )
        self._unread.pop(offset, None)

    def check_unchanged(self) -> None:
        """As the file itself."""
        self._source.check_unchanged()

    def same_file(self, _other: os.stat_result) -> bool:
        """No local file is this one."""
        return False


def _data_offset(entry: Member, following: int) -> int | None:
    """Where the record's data begin if `following` is where the next begins; None if unclear."""
    first = entry.header_offset + LOCAL.size + len(entry.name.encode())
    if not entry.flags & DESCRIPTOR and first + entry.compressed == following:
        return first
    sizes = DESCRIPTOR_SIZES if entry.flags & DESCRIPTOR else (0,)
    fitting = [following - entry.compressed - size for size in sizes]
    fitting = [offset for offset in fitting if offset >= first and offset % _ALIGNMENT == 0]
    return fitting[0] if len(fitting) == 1 else None

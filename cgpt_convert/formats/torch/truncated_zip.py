"""Recovery of a truncated torch ZIP from the front, without the directory at its end.

torch's local headers have no sizes (APPNOTE.TXT 4.4.4, bit 3). The pickle, which comes first, ends
at its STOP and gives the length of each storage; any other record ends at a data descriptor (4.3.9)
with its exact length.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from cgpt_convert.archives.zip_archive import Archive
from cgpt_convert.archives.zip_directory import (
    CENTRAL,
    DESCRIPTOR,
    DESCRIPTORS,
    END,
    LOCAL,
    STORED,
    ZipMember,
    name_not_utf8,
)
from cgpt_convert.checkpoint import MissingTensor
from cgpt_convert.core.errors import CgptError, Malformed
from cgpt_convert.core.limits import MEMBERS
from cgpt_convert.core.text import printable, quoted
from cgpt_convert.formats.salvage import AGAIN, PartialCheckpoint, content_end, sift
from cgpt_convert.formats.torch.pickle_stream import PickleStream, Truncated
from cgpt_convert.formats.torch.zip_reader import of_archive, storage_fields, storage_reference
from cgpt_convert.pickles.decode.decoder import DecodedPickle
from cgpt_convert.pickles.nodes import PersistentId, Value
from cgpt_convert.sources.local import CHUNK, Source, read

_DIRECTORY = (b"PK\1\2", b"PK\6\6", b"PK\5\6")  # what follows the last record
_UNKNOWN_CRC = -1
_FALSE_DESCRIPTORS = 10_000  # one in 4 GiB occurs by chance; a limit for crafted files


def diagnose(source: Source) -> CgptError:
    """Return the error that says where the file ends and how many tensors are intact.

    The error is Malformed unless the existing part cannot be read for another reason.
    """
    try:
        return salvage(source).error()
    except CgptError as error:
        return error.at(source.name)


def salvage(source: Source) -> PartialCheckpoint:
    """Return the intact tensors of the archive.

    Raises Malformed if the pickle itself is truncated, or if the archive was not written by torch.
    """
    walk = _RecordWalk(source)
    try:
        walk.run()
    except Truncated as error:
        raise Malformed(
            f"the file is truncated at byte {source.nbytes:,}, inside the pickle with the tensors' "
            "names",
            where=source.name,
            hint=AGAIN,
        ) from error
    if walk.sizes is None:
        raise Malformed(
            f"the zip archive is truncated at byte {walk.end:,} and has no data.pkl before it",
            where=source.name,
            hint=AGAIN,
        )
    members = walk.members | walk.missing()
    if not any(member.crc32 for member in walk.members.values()):  # no checksums in the archive
        members = {name: member._replace(crc32=0) for name, member in members.items()}
    directory = sum(CENTRAL.size + len(name) for name in members) + END.size
    ends = [member.offset + member.nbytes for member in members.values()]
    needed = max(max(ends) + directory, source.nbytes + (walk.end == source.nbytes))
    partial = sift(of_archive(Archive(source, members), walk.decoded()), walk.end, needed)
    script = any(f"{walk.root}/code/" in name for name in members)
    if script and f"{walk.root}/constants.pkl" not in members:
        why = "the file is truncated before the pickle with their names"
        partial.checkpoint.lost["constants"] = MissingTensor(None, why)
    return partial


class _RecordSize(NamedTuple):
    """The length of a record and the start of the next, which is None if unknown."""

    nbytes: int
    crc32: int
    following: int | None


class _RecordWalk:
    """The records from the start to `end`, where the valid content ends."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.members: dict[str, ZipMember] = {}
        self.sizes: dict[str, int] | None = None  # of the storages, by record name
        self.pickle: tuple[str, DecodedPickle] | None = None  # its record's name, and the pickle
        self.root = ""
        self.end = source.nbytes

    def run(self) -> None:
        """Walk the records as far as possible."""
        at: int | None = 0
        while at is not None:
            header = _local_header(self.source, at)
            if header is None:
                self._stop(at)
                return
            if header.name in self.members:
                message = f"the record {quoted(header.name)} occurs twice"
                raise Malformed(message, where=self.source.name)
            if len(self.members) == MEMBERS:
                message = f"the archive has more records than the limit of {MEMBERS:,}"
                raise Malformed(message, where=self.source.name)
            sized = self._measure(header)
            if sized is None:
                kept = content_end(self.source, header.offset)
                if self.source.nbytes - kept > DESCRIPTORS[1].size:  # more than a descriptor
                    self.end = kept
                return
            self.members[header.name] = header._replace(
                nbytes=sized.nbytes, compressed=sized.nbytes, crc32=sized.crc32
            )
            at = sized.following

    def _stop(self, at: int) -> None:
        """Set `end` according to the data at `at`, which is not a complete record."""
        rest = read(self.source, at, min(4, self.source.nbytes - at))
        if rest in _DIRECTORY or self.source.nbytes - at < LOCAL.size:
            return
        if rest != b"PK\3\4":
            self.end = min(at, content_end(self.source))

    def _measure(self, header: ZipMember) -> _RecordSize | None:
        """Return the record's length; None if it cannot be determined."""
        place = f"{self.source.name}[{printable(header.name)}]"
        if header.method != STORED:
            message = "the record is compressed, and the archive is truncated"
            raise Malformed(message, where=place, hint=AGAIN)
        if header.name.endswith("/data.pkl") and self.sizes is None:
            nbytes: int | None = self._read_pickle(header)
        else:
            nbytes = (self.sizes or {}).get(header.name)
        if not header.flags & DESCRIPTOR:
            end = header.offset + header.nbytes
            whole = end <= self.source.nbytes
            crc = header.crc32 if whole else _UNKNOWN_CRC
            return _RecordSize(header.nbytes, crc, end if whole else None)
        if nbytes is None:
            nbytes = _find_descriptor(self.source, header.offset)
            if nbytes is None:
                return None
        return self._described(header, nbytes)

    def _described(self, header: ZipMember, nbytes: int) -> _RecordSize:
        """Return the record of `nbytes` bytes, confirmed by its data descriptor if possible."""
        end = header.offset + nbytes
        tail = read(self.source, min(end, self.source.nbytes), _left(self.source, end))
        described = _descriptor(tail, nbytes)
        if described:
            crc, length = described
            return _RecordSize(nbytes, crc, end + length)
        if not nbytes:  # torch writes none after an empty record
            return _RecordSize(0, 0, end)
        if len(tail) < DESCRIPTORS[0].size:  # the file ends in or after the record
            return _RecordSize(nbytes, _UNKNOWN_CRC, None)
        descriptor = _find_descriptor(self.source, header.offset)
        if descriptor is not None:
            return self._described(header, descriptor)
        kept = content_end(self.source, header.offset)
        self.end = kept if kept <= end else header.offset  # zeros from there on, or damage
        return _RecordSize(nbytes, _UNKNOWN_CRC, None)

    def _read_pickle(self, header: ZipMember) -> int:
        """Return the pickle's length; record the sizes of the storages that it declares."""
        self.root = header.name.removesuffix("/data.pkl")
        sizes: dict[str, int] = {}

        def note(reference: Value) -> Value:
            if storage_fields(reference):  # the reader reports all others
                with suppress(CgptError):
                    key, dtype, numel, _ = storage_reference(reference)
                    sizes[f"{self.root}/data/{key}"] = numel * (dtype.nbytes if dtype else 1)
            return PersistentId(reference)

        name = printable(header.name)
        self.pickle = header.name, PickleStream(self.source, header.offset).unpickle(name, note)
        self.sizes = sizes
        return self.pickle[1].end

    def decoded(self) -> dict[str, DecodedPickle]:
        """Return the pickle by its record's name, unless the record proved to be too short."""
        if self.pickle is None:
            return {}
        name, decoded = self.pickle
        return {name: decoded} if self.members[name].nbytes >= decoded.reach else {}

    def missing(self) -> dict[str, ZipMember]:
        """Return the missing storages, placed consecutively where the file should continue."""
        at = max([self.end, *(m.offset + m.nbytes for m in self.members.values())])
        members = {}
        for name, nbytes in (self.sizes or {}).items():
            if name not in self.members:
                at += LOCAL.size + len(name)
                members[name] = ZipMember(
                    name, at, at, nbytes, nbytes, STORED, DESCRIPTOR, _UNKNOWN_CRC
                )
                at += nbytes + (DESCRIPTORS[0].size if nbytes else 0)
        return members


def _local_header(source: Source, at: int) -> ZipMember | None:
    """Return the record whose local header is at `at`, with its sizes; None if there is none."""
    if at + LOCAL.size > source.nbytes:
        return None
    fields = LOCAL.unpack(read(source, at, LOCAL.size))
    magic, _, flags, method, _, _, crc, compressed, nbytes, n_name, n_extra = fields
    offset = at + LOCAL.size + n_name + n_extra
    if magic != b"PK\3\4" or offset > source.nbytes:
        return None
    raw = read(source, at + LOCAL.size, n_name)
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise name_not_utf8(raw, source.name) from error
    return ZipMember(name, at, offset, nbytes, compressed, method, flags, crc)


def _left(source: Source, at: int) -> int:
    """Return how many bytes of the longest data descriptor fit at `at`."""
    return max(0, min(DESCRIPTORS[1].size, source.nbytes - at))


def _descriptor(tail: bytes, nbytes: int, at: int = 0) -> tuple[int, int] | None:
    """Return checksum and size of the data descriptor at `tail[at:]` for `nbytes` bytes."""
    for form in DESCRIPTORS:
        if at + form.size <= len(tail):
            magic, crc, compressed, size = form.unpack_from(tail, at)
            if magic == b"PK\7\x08" and compressed == size == nbytes:
                return crc, form.size
    return None


def _find_descriptor(source: Source, offset: int) -> int | None:
    """Return the length of the record at `offset` from its data descriptor; None if none fits."""
    base, tried, overlap = offset, 0, DESCRIPTORS[1].size
    while base < source.nbytes and tried < _FALSE_DESCRIPTORS:
        data = read(source, base, min(CHUNK + overlap, source.nbytes - base))
        at = data.find(b"PK\7\x08")
        while 0 <= at < CHUNK and tried < _FALSE_DESCRIPTORS:
            if _descriptor(data, base + at - offset, at):
                return base + at - offset
            tried += 1
            at = data.find(b"PK\7\x08", at + 1)
        base += CHUNK
    return None

"""The only module that writes. Whatever the format: temporary sibling, stream, check, rename.

Whoever kills the process finds the old output or none. A temporary that a kill left behind is
removed by the next run that writes the same output.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cgpt_convert import staging
from cgpt_convert.errors import CannotWrite, Malformed
from cgpt_convert.plan import Crc32, FileDigest, FilePlan, Late, Part
from cgpt_convert.source import CHUNK
from cgpt_convert.tensor import Range, Storage, Tensor

if TYPE_CHECKING:
    from cgpt_convert.blocks import CastCounts

Advance = Callable[[int], object]  # told how many further bytes are written


def _untold(_nbytes: int) -> None:
    """Nobody wants to know."""


@dataclass(slots=True)
class Options:
    """How to write. `lost` gathers what casts cost, by tensor name."""

    overwrite: bool = False
    advance: Advance = _untold
    check: Callable[[str], None] | None = None  # of each file before it gets its name
    lost: dict[str, CastCounts] = field(default_factory=dict)


def write_files(plans: Sequence[FilePlan], folder: str, options: Options) -> list[str]:
    """The paths written: each plan's file in the existing `folder`, all of them or none.

    Raises CannotWrite; Malformed where bytes read do not match the checksum the source records.
    """
    with staging.Files(folder, [plan.path for plan in plans], overwrite=options.overwrite) as stage:
        _write_all(plans, stage, options)
        return stage.publish()


def write_folder(plans: Sequence[FilePlan], folder: str, options: Options) -> list[str]:
    """The paths written: a new folder with each plan's file, whole or not at all."""
    with staging.Folder(folder, overwrite=options.overwrite) as stage:
        _write_all(plans, stage, options)
        return stage.publish()


def write_blocks(tensor: Tensor, descriptor: int) -> None:
    """Write one tensor's bytes to an open file, such as standard output. OSErrors are its own."""
    writer = _Writer(descriptor, Options(), set(), ())
    writer.part(0, tensor)
    tensor.storage.source.check_unchanged()


def check_storages(storages: Iterable[Storage], advance: Advance = _untold) -> list[Storage]:
    """The storages whose bytes do not match their recorded CRC-32; each byte is read once."""
    return [s for s in storages if s.crc32 is not None and not _matches(s, advance)]


def _matches(storage: Storage, advance: Advance) -> bool:
    try:
        return storage_crc32(storage, advance) == storage.crc32
    except Malformed:  # deflated data that cannot be inflated
        return False


def storage_crc32(storage: Storage, advance: Advance = _untold) -> int:
    """The CRC-32 of the storage's bytes, read in chunks."""
    from isal.isal_zlib import crc32

    buffer = memoryview(bytearray(min(CHUNK, storage.nbytes)))
    value = 0
    for start in range(0, storage.nbytes, CHUNK):
        piece = buffer[: min(CHUNK, storage.nbytes - start)]
        storage.readinto(start, piece)
        value = crc32(piece, value)
        advance(len(piece))
    return value


def _write_all(plans: Sequence[FilePlan], stage: staging.Stage, options: Options) -> None:
    checked: set[int] = set()  # ids of storages whose CRC-32 has been compared
    digests: dict[str, FileDigest] = {}
    sources = {}
    staging.check_space(stage.folder, sum(plan.nbytes for plan in plans))
    for plan in plans:
        path, descriptor = stage.create(plan.path)
        try:
            with os.fdopen(descriptor, "wb", buffering=0):
                writer = _Writer(descriptor, options, checked, plan.parts, hashed=plan.hashed)
                for index, planned in enumerate(plan.parts):
                    part = planned.make(digests) if isinstance(planned, Late) else planned
                    if isinstance(part, Tensor):
                        sources[id(part.storage.source)] = part.storage.source
                    writer.part(index, part)
                writer.finish(plan.nbytes)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise CannotWrite(why, where=stage.final(plan.path)) from error
        if plan.hashed:
            digests[plan.path] = writer.digest()
        if options.check:
            options.check(path)
    for source in sources.values():
        source.check_unchanged()


class _Writer:
    """One file being written in order, with the checksums that its plan asks for."""

    def __init__(
        self,
        descriptor: int,
        options: Options,
        checked: set[int],
        parts: tuple[Part, ...],
        *,
        hashed: bool = False,
    ) -> None:
        self.descriptor = descriptor
        self.options = options
        self.checked = checked
        self.position = 0
        self.buffer = memoryview(bytearray(CHUNK))
        self.sums = {part: 0 for part in parts if isinstance(part, Crc32)}
        self.places: list[tuple[int, Crc32]] = []  # where a sum not yet known belongs
        self.covering: dict[int, list[Crc32]] = {}  # index of a part -> the sums it goes into
        for each in self.sums:
            for index in range(each.first, each.last):
                self.covering.setdefault(index, []).append(each)
        self.active: list[Crc32] = []
        self.whole = 0
        self.sha256 = None
        if hashed:
            import hashlib

            self.sha256 = hashlib.sha256()

    def part(self, index: int, part: Part) -> None:
        self.active = self.covering.get(index, [])
        if isinstance(part, Tensor):
            self.tensor(part)
        elif isinstance(part, Crc32):
            if part.last > index:
                self.places.append((self.position, part))
            self.write(memoryview(self.sums[part].to_bytes(4, "little")))
        elif isinstance(part, bytes):
            self.write(memoryview(part))

    def tensor(self, tensor: Tensor) -> None:
        storage, extent = tensor.storage, tensor.extent()
        whole = extent is not None and extent.nbytes == storage.nbytes
        if storage.crc32 is not None and not whole and id(storage) not in self.checked:
            if storage_crc32(storage) != storage.crc32:
                raise _damaged(tensor)
            self.checked.add(id(storage))
        if extent is not None:
            self.copy(tensor, extent)
        else:
            counts = None
            if tensor.target:
                from cgpt_convert.blocks import CastCounts

                counts = self.options.lost.setdefault(tensor.name, CastCounts())
            for block in tensor.blocks(counts=counts):
                self.write(block)

    def copy(self, tensor: Tensor, extent: Range) -> None:
        from isal.isal_zlib import crc32

        storage, start, nbytes = extent
        compare = storage.crc32 is not None and nbytes == storage.nbytes
        value = 0
        for at in range(start, start + nbytes, CHUNK):
            piece = self.buffer[: min(CHUNK, start + nbytes - at)]
            storage.readinto(at, piece)
            if compare:
                value = crc32(piece, value)
            self.write(piece)
        if compare and value != storage.crc32:
            raise _damaged(tensor)
        self.checked.add(id(storage))

    def write(self, data: memoryview) -> None:
        if self.active:
            from isal.isal_zlib import crc32

            for each in self.active:
                self.sums[each] = crc32(data, self.sums[each])
        if self.sha256:
            from isal.isal_zlib import crc32

            self.sha256.update(data)
            self.whole = crc32(data, self.whole)
        nbytes = len(data)
        while data:
            data = data[os.write(self.descriptor, data) :]
        self.position += nbytes
        self.options.advance(nbytes)

    def finish(self, nbytes: int) -> None:
        """Fill in the sums that precede what they cover, and compare the size with the plan."""
        for at, part in self.places:
            os.pwrite(self.descriptor, self.sums[part].to_bytes(4, "little"), at)
        if self.sha256 and self.places:
            self.hash_again()
        if self.position != nbytes:
            raise CannotWrite(f"wrote {self.position:,} bytes where {nbytes:,} were planned")

    def hash_again(self) -> None:
        """What was hashed on the way had not its sums yet."""
        import hashlib

        from isal.isal_zlib import crc32

        self.sha256, self.whole = hashlib.sha256(), 0
        for at in range(0, self.position, CHUNK):
            data = os.pread(self.descriptor, CHUNK, at)
            self.sha256.update(data)
            self.whole = crc32(data, self.whole)

    def digest(self) -> FileDigest:
        return FileDigest(self.sha256.hexdigest() if self.sha256 else "", self.whole)


def _damaged(tensor: Tensor) -> Malformed:
    return Malformed(
        f"storage {tensor.storage.key} does not match its checksum; damaged: {tensor.name}",
        where=tensor.storage.source.name,
        hint="download the file again",
    )

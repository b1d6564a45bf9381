"""CRC-32 checks of storages. torch's archives record checksums that torch never checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from isal.isal_zlib import crc32

from cgpt_convert.core.errors import SALVAGE, Malformed, Unsupported
from cgpt_convert.core.text import quoted
from cgpt_convert.core.threads import Advance, untold
from cgpt_convert.sources.local import CHUNK, is_distant
from cgpt_convert.tensors.assembled import boxes_of, with_boxes
from cgpt_convert.tensors.tensor import Storage, Tensor, replace


def stored(storages: Iterable[Storage]) -> list[Storage]:
    """Return the storages, with those of its boxes in place of one that is assembled."""
    parts: list[Storage] = []
    for storage in storages:
        boxes = boxes_of(storage)
        parts += stored(box.tensor.storage for box in boxes) if boxes else (storage,)
    return parts


def check_storages(storages: Iterable[Storage], advance: Advance = untold) -> list[Storage]:
    """Return the storages that do not match their recorded CRC-32; each byte is read once."""
    return [s for s in storages if s.crc32 is not None and not _matches(s, advance)]


class ChecksummedSource:
    """A source over a storage that computes the CRC-32 while it is read sequentially.

    A reader that reads all bytes in order, in pieces of any size, gets the checksum without a
    second read.
    """

    def __init__(self, storage: Storage) -> None:
        self.name, self.nbytes = storage.source.name, storage.nbytes
        self.within = storage.source
        self.distant = is_distant(storage.source)
        self._storage = storage
        self._summed = self._value = 0  # number of bytes summed from the start, and their checksum

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        self._storage.readinto(offset, buffer)
        if offset == self._summed:
            self._value = crc32(buffer, self._value)
            self._summed += len(buffer)

    def crc32(self) -> int:
        """Return the CRC-32 of all bytes; bytes that were not read in order are read now."""
        return storage_crc32(self._storage, start=self._summed, value=self._value)

    def check_unchanged(self) -> None:
        """Check the file that contains the storage."""
        self._storage.source.check_unchanged()


@contextmanager
def compared(tensors: Iterable[Tensor], seen: set[int]) -> Iterator[list[Tensor]]:
    """Yield the tensors for reading; on exit, compare their storages with their checksums.

    Each storage is compared once: `seen` has the ids of those already compared. Raises Malformed
    for a mismatch, also in place of Unsupported, because damage may have caused it (NaN values, for
    example).
    """
    watched: list[tuple[Tensor, ChecksummedSource]] = []

    def watch(tensor: Tensor) -> Tensor:
        storage = tensor.storage
        boxes = boxes_of(storage)
        if boxes and id(storage) not in seen:
            seen.add(id(storage))
            return with_boxes(tensor, [box.over(watch(box.tensor)) for box in boxes])
        if storage.crc32 is None or id(storage) in seen:
            return tensor
        seen.add(id(storage))
        summed = ChecksummedSource(storage)
        watched.append((tensor, summed))
        return replace(tensor, storage=replace(storage, source=summed, offset=0))

    try:
        yield [watch(tensor) for tensor in tensors]
    except Unsupported:
        _check(watched)
        raise
    _check(watched)


def _check(watched: Iterable[tuple[Tensor, ChecksummedSource]]) -> None:
    for tensor, summed in watched:
        if summed.crc32() != tensor.storage.crc32:
            raise damaged(tensor)


def damaged(tensor: Tensor) -> Malformed:
    """Return the error for a tensor whose storage does not match its checksum."""
    return Malformed(
        f"tensor {quoted(tensor.name)} is damaged: storage {quoted(tensor.storage.key)} does not "
        "match its checksum",
        where=tensor.storage.source.name,
        hint=f"download the file again, or {SALVAGE}",
    )


def storage_crc32(
    storage: Storage, advance: Advance = untold, start: int = 0, value: int = 0
) -> int:
    """Return the CRC-32 of a storage, read in chunks; `value` is that of bytes before `start`."""
    buffer = memoryview(bytearray(min(CHUNK, storage.nbytes - start)))
    for at in range(start, storage.nbytes, CHUNK):
        piece = buffer[: min(CHUNK, storage.nbytes - at)]
        storage.readinto(at, piece)
        value = crc32(piece, value)
        advance(len(piece))
    return value


def _matches(storage: Storage, advance: Advance) -> bool:
    try:
        return storage_crc32(storage, advance) == storage.crc32
    except Malformed:  # deflated data that cannot be inflated
        return False

"""CRC-32 of storages, which torch's archives record and torch never checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from isal.isal_zlib import crc32

from cgpt_convert.errors import Malformed
from cgpt_convert.source import CHUNK
from cgpt_convert.tensor import Storage

Advance = Callable[[int], object]  # told how many further bytes are done


def untold(_nbytes: int) -> None:
    """Nobody wants to know."""


def check_storages(storages: Iterable[Storage], advance: Advance = untold) -> list[Storage]:
    """The storages whose bytes do not match their recorded CRC-32; each byte is read once."""
    return [s for s in storages if s.crc32 is not None and not _matches(s, advance)]


def storage_crc32(storage: Storage, advance: Advance = untold) -> int:
    """The CRC-32 of the storage's bytes, read in chunks."""
    buffer = memoryview(bytearray(min(CHUNK, storage.nbytes)))
    value = 0
    for start in range(0, storage.nbytes, CHUNK):
        piece = buffer[: min(CHUNK, storage.nbytes - start)]
        storage.readinto(start, piece)
        value = crc32(piece, value)
        advance(len(piece))
    return value


def _matches(storage: Storage, advance: Advance) -> bool:
    try:
        return storage_crc32(storage, advance) == storage.crc32
    except Malformed:  # deflated data that cannot be inflated
        return False

"""Prefetched parts of remote storages, for reads in any order."""

from __future__ import annotations

from cgpt_convert.sources.local import CHUNK, MemoryBytes, is_distant
from cgpt_convert.sources.temp_cache import TempFile
from cgpt_convert.tensors.strided_copy import span
from cgpt_convert.tensors.tensor import Storage, Tensor, replace

_IN_MEMORY = 32 << 20  # bytes; more go to a temporary file without a name


def near(tensor: Tensor) -> Tensor:
    """Return the same view; if its storage is remote, on bytes that are fetched now."""
    if not is_distant(tensor.storage.source):
        return tensor
    first, size = tensor.stored.size(tensor.start), span(tensor.shape, tensor.strides)
    return replace(tensor, storage=fetched(tensor.storage, first, tensor.stored.size(size)))


def fetched(storage: Storage, start: int, nbytes: int) -> Storage:
    """Return the storage limited to bytes `start` to `start + nbytes`, which are fetched now."""
    return replace(storage, source=_PrefetchedBytes(storage, start, nbytes), offset=0)


class _PrefetchedBytes:
    def __init__(self, storage: Storage, start: int, nbytes: int) -> None:
        self.name, self.nbytes = storage.source.name, storage.nbytes
        self.within = storage.source
        self._storage, self._start = storage, start
        self._bytes = (
            self._in_memory(nbytes) if nbytes <= _IN_MEMORY else self._in_temp_file(nbytes)
        )

    def _in_memory(self, nbytes: int) -> MemoryBytes:
        data = bytearray(nbytes)
        view = memoryview(data)
        for at in range(0, nbytes, CHUNK):
            self._storage.readinto(self._start + at, view[at : at + CHUNK])
        return MemoryBytes(self.name, data)

    def _in_temp_file(self, nbytes: int) -> TempFile:
        temp_file = TempFile(self.name)
        buffer = memoryview(bytearray(CHUNK))
        for at in range(0, nbytes, CHUNK):
            piece = buffer[: min(CHUNK, nbytes - at)]
            self._storage.readinto(self._start + at, piece)
            temp_file.write(piece, at)
        return temp_file

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the storage."""
        self._bytes.readinto(offset - self._start, buffer)

    def check_unchanged(self) -> None:
        """Check the file that contains the bytes."""
        self._storage.source.check_unchanged()

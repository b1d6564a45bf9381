"""Storages whose elements are cast to another type while they are read."""

from __future__ import annotations

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.sources.local import CHUNK
from cgpt_convert.tensors.dtypes import CASTS, DType
from cgpt_convert.tensors.tensor import Storage, Tensor


def cast_storage(storage: Storage, stored: DType, target: DType) -> Storage:
    """Return a storage of the same elements as `target`, rounded as in torch.

    Raises Unsupported for a pair of types without a cast.
    """
    if not stored.is_float or target.name not in CASTS:
        raise Unsupported(f"a cast from {stored.name} to {target.name} is not supported")
    source = _CastElements(storage, stored, target)
    return Storage(source, 0, source.nbytes, storage.key, device=storage.device)


class _CastElements:
    """The elements of a storage, cast and little-endian, as random-access bytes."""

    def __init__(self, storage: Storage, stored: DType, target: DType) -> None:
        self.name = storage.source.name
        self.within = storage.source
        self.nbytes = storage.nbytes // stored.nbytes * target.nbytes
        self._storage = storage
        self._stored = stored
        self._target = target

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset`."""
        width = self._target.nbytes
        first = offset // width
        count = -(-(offset + len(buffer)) // width) - first
        tensor = Tensor("", self._stored, (count,), (1,), first, self._storage, target=self._target)
        skip, done = offset - first * width, 0
        for block in tensor.blocks(CHUNK):
            part = block[skip : skip + len(buffer) - done]
            buffer[done : done + len(part)] = part
            skip, done = max(0, skip - len(block)), done + len(part)

    def check_unchanged(self) -> None:
        """Raise Unreadable if the file has changed since it was opened."""
        self._storage.source.check_unchanged()

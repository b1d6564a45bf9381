"""A part of a distant storage, fetched once, to be read in any order."""

from __future__ import annotations

import os
import tempfile

from cgpt_convert.errors import Malformed
from cgpt_convert.source import CHUNK, is_distant, unreadable
from cgpt_convert.tensor import Storage, Tensor, replace
from cgpt_convert.values.views import span

_IN_MEMORY = 32 << 20  # bytes; more go to a temporary file without a name


def near(tensor: Tensor) -> Tensor:
    """The same view; if its storage is distant, of bytes that were fetched once and are here."""
    if not is_distant(tensor.storage.source):
        return tensor
    first, size = tensor.stored.size(tensor.start), span(tensor.shape, tensor.strides)
    return replace(tensor, storage=held(tensor.storage, first, tensor.stored.size(size)))


def held(storage: Storage, start: int, nbytes: int) -> Storage:
    """The storage, of which only bytes `start` to `start + nbytes` can be read, and are here."""
    return replace(storage, source=_Held(storage, start, nbytes), offset=0)


class _Held:
    def __init__(self, storage: Storage, start: int, nbytes: int) -> None:
        self.name, self.nbytes = storage.source.name, storage.nbytes
        self._storage, self._start = storage, start
        self._data = bytearray(nbytes if nbytes <= _IN_MEMORY else 0)
        try:
            if self._data or not nbytes:
                self._fill(memoryview(self._data))
            else:
                self._spool(nbytes)
        except OSError as error:
            raise unreadable(error, tempfile.gettempdir()) from error

    def _fill(self, data: memoryview) -> None:
        for at in range(0, len(data), CHUNK):
            self._storage.readinto(self._start + at, data[at : at + CHUNK])

    def _spool(self, nbytes: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  as long as we live
        buffer = memoryview(bytearray(CHUNK))
        for at in range(0, nbytes, CHUNK):
            piece = buffer[: min(CHUNK, nbytes - at)]
            self._storage.readinto(self._start + at, piece)
            self._file.write(piece)
        self._file.flush()

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the storage."""
        at = offset - self._start
        if self._data:
            buffer[:] = memoryview(self._data)[at : at + len(buffer)]
        elif os.preadv(self._file.fileno(), [buffer], at) != len(buffer):
            raise Malformed("the temporary file became shorter", where=self.name)

    def check_unchanged(self) -> None:
        """As the file it is from."""
        self._storage.source.check_unchanged()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

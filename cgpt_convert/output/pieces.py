"""The bytes of tensors as they are written, compared with the checksums that sources record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from isal.isal_zlib import crc32

from cgpt_convert.errors import Malformed, Unsupported
from cgpt_convert.output.checksums import Summed
from cgpt_convert.output.crew import Crew
from cgpt_convert.source import CHUNK
from cgpt_convert.tensor import Range, Tensor
from cgpt_convert.values.blocks import CastCounts

_BLOCK = 16 << 20  # bytes that all threads together rearrange at a time; memory is 3 times that


class Pieces:
    """The bytes of tensors in pieces, compared with the checksum that the source records."""

    def __init__(self, lost: dict[str, CastCounts], crew: Crew) -> None:
        self.lost = lost  # what casts cost, by tensor name
        self.crew = crew
        self.block = _BLOCK // crew.size
        self.checked: set[int] = set()  # ids of storages whose CRC-32 has been compared

    def of(self, tensor: Tensor, position: int = 0) -> Iterator[memoryview]:
        """The tensor's bytes; each piece is valid until the next. `position` is in the output."""
        storage, extent = tensor.storage, tensor.extent()
        if extent is not None and extent.nbytes == storage.nbytes:
            yield from self._whole(tensor, extent, position)
            return
        if self.crew.size > 1 and extent is None:
            self.crew.wait_prepared()
        summed = None
        if storage.crc32 is not None and id(storage) not in self.checked:
            self.checked.add(id(storage))
            summed = Summed(storage)
            tensor = replace(tensor, storage=replace(storage, source=summed, offset=0))
        counts = None
        if tensor.target:
            counts = self.lost.setdefault(tensor.name, CastCounts())
        try:
            for block in tensor.blocks(self.block, counts):
                self.crew.go_on()
                yield block
        except Unsupported:  # values that are no numbers, say: damage may have made them
            if summed is not None and summed.crc32() != storage.crc32:
                raise _damaged(tensor) from None
            raise
        if summed is not None and summed.crc32() != storage.crc32:
            raise _damaged(tensor)

    def _whole(self, tensor: Tensor, extent: Range, position: int) -> Iterator[memoryview]:
        storage, start, nbytes = extent
        buffer = memoryview(bytearray(min(CHUNK, nbytes)))
        value = done = 0
        while done < nbytes:
            self.crew.go_on()
            # up to a multiple of CHUNK in the output: whole pages cost less to write
            piece = buffer[: min(CHUNK - (position + done) % CHUNK, nbytes - done)]
            storage.readinto(start + done, piece)
            if storage.crc32 is not None:
                value = crc32(piece, value)
            done += len(piece)
            yield piece
        if storage.crc32 not in (None, value):
            raise _damaged(tensor)
        self.checked.add(id(storage))


def _damaged(tensor: Tensor) -> Malformed:
    return Malformed(
        f"storage {tensor.storage.key} does not match its checksum; damaged: {tensor.name}",
        where=tensor.storage.source.name,
        hint="download the file again",
    )

"""Stream the bytes of tensors, verifying source checksums and hashing on the way; order the work.

Threads share the tensors, except for those of one compressed storage, which are read in sequence.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from isal.isal_zlib import crc32

from cgpt_convert.core.threads import Job, WorkerPool
from cgpt_convert.plan import Part
from cgpt_convert.sources.local import CHUNK, is_sequential
from cgpt_convert.tensors.assembled import boxes_of
from cgpt_convert.tensors.checksums import compared, damaged
from cgpt_convert.tensors.content_digest import begun
from cgpt_convert.tensors.read import CastCounts
from cgpt_convert.tensors.tensor import ByteRange, Content, Tensor

if TYPE_CHECKING:
    from hashlib import _Hash as Hash


_BLOCK = 16 << 20  # bytes rearranged at a time by all threads together; memory use is 3 times that


def contents(tensor: Tensor) -> set[Content]:
    """Return the contents that reading the tensor reads: its own, and that before a cast.

    Blocks that are written as they are stored are not decoded.
    """
    cast = {tensor.uncast.content} if tensor.target is not None else set()
    return {tensor.content} | cast


class TensorPieces:
    """The bytes of tensors in pieces, compared with the checksum in the source.

    `lost` counts the values lost by casts, by tensor name. `digests` has the digests of the
    `wanted` contents, which are written as they are or cast first.
    """

    def __init__(
        self,
        workers: WorkerPool,
        lost: dict[str, CastCounts] | None = None,
        wanted: Iterable[Content] = (),
    ) -> None:
        self.workers = workers
        self.digests: dict[Content, str] = {}
        self._lost = {} if lost is None else lost
        self._wanted = frozenset(wanted)
        self._block = _BLOCK // workers.size
        self._checked: set[int] = set()  # ids of storages whose CRC-32 has been compared

    def of(self, tensor: Tensor, position: int = 0) -> Iterator[memoryview]:
        """Yield the bytes, for output offset `position`; a piece is valid until the next one."""
        written = self._hash(tensor)
        is_cast = len(contents(tensor)) > 1
        source = self._hash(tensor.uncast) if is_cast else None
        pieces = self._checked_pieces(tensor, position, source.update if source else None)
        if written is None:
            yield from pieces
        else:
            for piece in pieces:
                written.update(piece)
                yield piece
        for content, digest in ((tensor.content, written), (tensor.uncast.content, source)):
            if digest is not None:
                with self.workers.lock:
                    self.digests[content] = digest.hexdigest()

    def hashes(self, parts: Iterable[object]) -> bool:
        """Return whether any of these is a tensor whose digest is wanted."""
        tensors = (part for part in parts if isinstance(part, Tensor))
        return any(contents(tensor) & self._wanted for tensor in tensors)

    def _hash(self, tensor: Tensor) -> Hash | None:
        if tensor.content not in self._wanted:
            return None
        self.workers.wait_prepared()
        return begun(tensor)

    def _checked_pieces(
        self, tensor: Tensor, position: int, tap: Callable[[memoryview], object] | None
    ) -> Iterator[memoryview]:
        storage, extent = tensor.storage, tensor.extent()
        boxes = boxes_of(storage)
        if extent is not None and extent.nbytes == storage.nbytes and not boxes:
            yield from self._whole(tensor, extent, position)
            return
        if self.workers.size > 1 and (extent is None or boxes):
            self.workers.wait_prepared()
        counts = self._lost.setdefault(tensor.name, CastCounts()) if tensor.target else None
        with compared([tensor], self._checked) as (watched,):
            for block in watched.blocks(self._block, counts, tap, self.workers.size):
                self.workers.go_on()
                yield block

    def _whole(self, tensor: Tensor, extent: ByteRange, position: int) -> Iterator[memoryview]:
        storage, start, nbytes = extent
        buffer = memoryview(bytearray(min(CHUNK, nbytes)))
        value = done = 0
        while done < nbytes:
            self.workers.go_on()
            # ends at a multiple of CHUNK in the output, since whole pages are faster to write
            piece = buffer[: min(CHUNK - (position + done) % CHUNK, nbytes - done)]
            storage.readinto(start + done, piece)
            if storage.crc32 is not None:
                value = crc32(piece, value)
            done += len(piece)
            yield piece
        if storage.crc32 not in (None, value):
            raise damaged(tensor)
        self._checked.add(id(storage))


def do_all(jobs: deque[Job]) -> None:
    """Run the remaining jobs, which several threads may share."""
    while True:
        try:
            job = jobs.popleft()
        except IndexError:
            return
        job()


def in_turn(jobs: Iterable[tuple[Part, Job]]) -> list[Job]:
    """Return the jobs, with those of one compressed storage merged into one sequential job.

    Otherwise each would decompress from the start; a small file can have thousands of them.
    """
    alone: list[Job] = []
    packed: dict[int, list[tuple[int, Job]]] = {}
    for part, job in jobs:
        if isinstance(part, Tensor) and is_sequential(part.storage.source):
            first = part.stored.size(part.start)  # in bytes, since dtypes may differ
            packed.setdefault(id(part.storage.source), []).append((first, job))
        else:
            alone.append(job)
    ordered = (sorted(each, key=lambda pair: pair[0]) for each in packed.values())
    return [functools.partial(do_all, deque(job for _, job in each)) for each in ordered] + alone

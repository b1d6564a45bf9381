"""Recovery of the intact tensors of a truncated file, with the names of the lost ones."""

from __future__ import annotations

from typing import NamedTuple

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core import findings
from cgpt_convert.core.errors import SALVAGE, Malformed
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.text import quoted_list
from cgpt_convert.sources.local import CHUNK, Source, read
from cgpt_convert.tensors.tensor import Storage, Tensor, replace

AGAIN = "download or copy the file again"
_SHOWN = 3


class PartialCheckpoint(NamedTuple):
    """The readable part of a file. `checkpoint` has only tensors whose bytes are all present."""

    checkpoint: Checkpoint  # its `lost` are the skipped tensors
    end: int  # valid bytes; nothing, zeros or damage follow
    needed: int  # minimum size of the complete file

    @property
    def lost(self) -> tuple[str, ...]:
        """The names of the lost tensors."""
        return tuple(self.checkpoint.lost)

    def error(self) -> Malformed:
        """Return the error that says how much of the file is present and what is lost."""
        checkpoint = self.checkpoint
        source = checkpoint.sources[0]
        whole = len(checkpoint.tensors) + len(checkpoint.exotic)
        where = f"byte {self.end:,} of at least {self.needed:,}"
        percent = 100 * self.end // max(self.needed, 1)
        what = _cause(source, self.end, where)
        lost = f" (lost: {quoted_list(self.lost, _SHOWN)})" if self.lost else ""
        intact = f"{whole:,} of {whole + len(self.lost):,} tensors are intact"
        return Malformed(
            f"{what} ({percent} %); {intact}{lost}",
            where=source.name,
            hint=f"{AGAIN}, or {SALVAGE}" if whole else AGAIN,
        )


def _cause(source: Source, end: int, where: str) -> str:
    """Return what is wrong with a file that is intact up to byte `end`, described by `where`."""
    cut = end == source.nbytes
    return (
        f"the file is truncated at {where}"
        if cut
        else f"the file contains only zeros or damage from {where}"
    )


def sift(checkpoint: Checkpoint, end: int, needed: int) -> PartialCheckpoint:
    """Remove the tensors that need bytes of the file from `end` on.

    A storage that extends past `end` is shortened, so that nothing can read further.
    """
    source = checkpoint.sources[0]
    cut: dict[int, Storage] = {
        id(storage): _shorten(storage, end)
        for storage in _all_storages(checkpoint)
        if storage.source is source and storage.offset + storage.nbytes > end
    }

    def left(tensor: Tensor) -> Tensor | None:
        short = cut.get(id(tensor.storage))
        if short is None:
            return tensor
        return replace(tensor, storage=short) if _fits(tensor, short.nbytes) else None

    why = _cause(source, end, f"byte {end:,}")
    for name, tensor in list(checkpoint.tensors.items()):
        kept = left(tensor)
        if kept is None:
            checkpoint.lose(name, why)
        else:
            checkpoint.tensors[name] = kept
    for name, exotic in list(checkpoint.exotic.items()):
        parts = tuple(part for part in map(left, exotic.parts) if part)
        if len(parts) < len(exotic.parts):
            checkpoint.lose(name, why)
        else:
            checkpoint.exotic[name] = exotic._replace(parts=parts)
    shortened = [cut.get(id(storage), storage) for storage in checkpoint.storages]
    checkpoint.storages = [s for s in shortened if s.nbytes or s.offset <= end]
    partial = PartialCheckpoint(checkpoint, end, needed)
    checkpoint.findings.append(Finding(findings.CUT_OFF, partial.error().message))
    return partial


def _all_storages(checkpoint: Checkpoint) -> list[Storage]:
    parts = [part for exotic in checkpoint.exotic.values() for part in exotic.parts]
    return [*checkpoint.storages, *(t.storage for t in (*checkpoint.values(), *parts))]


def _shorten(storage: Storage, end: int) -> Storage:
    return replace(storage, nbytes=max(0, end - storage.offset), crc32=None)


def _fits(tensor: Tensor, nbytes: int) -> bool:
    """Return whether every element is in the first `nbytes` bytes of the storage."""
    if not tensor.numel:
        return True
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.start + sum((size - 1) * step for size, step in steps)
    return tensor.stored.size(last + 1) <= nbytes


def content_end(source: Source, at: int = 0) -> int:
    """Return the offset after the last nonzero byte from `at` on; `at` if all are zero.

    An interrupted download into a preallocated file ends in zeros.
    """
    end = source.nbytes
    while end > at:
        size = min(CHUNK, end - at)
        data = read(source, end - size, size)
        if data != bytes(size):  # comparing is 20 times faster than rstrip
            return end - size + len(data.rstrip(b"\0"))
        end -= size
    return at

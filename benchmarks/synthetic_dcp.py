"""Distributed checkpoints that take next to no disk: all data are zeros, and holes.

    python -m benchmarks.synthetic_dcp BYTES OUT

Writes a checkpoint of 8 ranks, with matrices of 64 MiB that are divided by rows, by columns, and by
both on a mesh of 2 x 4. Archives and metadata are torch's own.
"""

from __future__ import annotations

import io
import itertools
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

RANKS = 8
SIDE = 4096  # of a square matrix of float32
MESHES = ((RANKS, 1), (1, RANKS), (2, RANKS // 2))
_PAGE = 4096


class SparseFile(io.RawIOBase):
    """A new file in which zeros are holes; what is written to it is only appended."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._at = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: object) -> int:
        """Append the bytes."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        if len(view) < _PAGE or view[0] or view.tobytes() != bytes(len(view)):
            self._file.seek(self._at)
            self._file.write(view)
        self._at += len(view)
        return len(view)

    def tell(self) -> int:
        """Return the size so far."""
        return self._at

    def close(self) -> None:
        """Close the file at its size."""
        if not self.closed:
            self._file.truncate(self._at)
            self._file.close()
        super().close()


def write(folder: Path, nbytes: int) -> Path:
    """Write a checkpoint of about `nbytes` bytes; return its folder."""
    folder.mkdir(parents=True)
    described, places = {}, {}
    files = [SparseFile(folder / f"__{rank}_0.distcp") for rank in range(RANKS)]
    for number in range(nbytes // (4 * SIDE * SIDE)):
        name = f"layers.{number}.weight"
        chunks: list[ChunkStorageMetadata] = []
        for file, (start, size) in zip(files, _chunks(*MESHES[number % 3]), strict=True):
            at = file.tell()
            torch.save(torch.zeros(size), file)  # type: ignore[arg-type]
            place = _StorageInfo(Path(f"__{files.index(file)}_0.distcp").name, at, file.tell() - at)
            places[MetadataIndex(name, start, len(chunks))] = place
            chunks.append(ChunkStorageMetadata(torch.Size(start), torch.Size(size)))
        properties = TensorProperties(dtype=torch.float32)
        described[name] = TensorStorageMetadata(properties, torch.Size((SIDE, SIDE)), chunks)
    for file in files:
        file.close()
    paths = {name: (name,) for name in described}
    metadata = Metadata(described, paths, places, StorageMeta(), "1.0.0")  # type: ignore[arg-type]
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def _chunks(rows: int, columns: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    size = SIDE // rows, SIDE // columns
    for row, column in itertools.product(range(rows), range(columns)):
        yield (row * size[0], column * size[1]), size


if __name__ == "__main__":
    write(Path(sys.argv[2]), int(sys.argv[1]))

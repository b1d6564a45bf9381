"""Checkpoints of many tensors or shards, which take next to no disk: all data are holes.

    python -m benchmarks.synthetic TENSORS SHARDS OUT

Writes SHARDS archives with TENSORS small tensors in all, the index if there are several, and
in each of those one more tensor of 1 GiB. Pickles are torch's own; the zeros have their CRC-32.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

NUMEL = 256  # of a small tensor: 1 KiB
_LARGE = 1 << 28  # of the large one
_FLOAT = 4  # bytes
_ZEROS = bytes(1 << 20)


def write(tensors: int, shards: int, folder: Path) -> Path:
    """The path of the only archive, or of the folder's index."""
    folder.mkdir(parents=True)
    names = [f"model.layers.{i // 8}.block.{i % 8}.weight" for i in range(tensors)]
    if shards == 1:
        return _write(folder / "pytorch_model.bin", dict.fromkeys(names, NUMEL))
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        path = folder / f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        chosen = names[tensors * shard // shards : tensors * (shard + 1) // shards]
        sizes = dict.fromkeys(chosen, NUMEL) | {f"large.{shard}": _LARGE}
        weight_map |= dict.fromkeys(sizes, path.name)
        _write(path, sizes)
    total = _FLOAT * (tensors * NUMEL + shards * _LARGE)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return index


def _write(path: Path, sizes: dict[str, int]) -> Path:
    """Write one archive with a tensor of so many elements under each name."""
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", _pickle(sizes))
        archive.writestr("archive/byteorder", "little")
        for record in _records(sizes):
            record.header_offset = file.tell()
            file.write(record.FileHeader())
            file.seek(record.file_size, 1)
            archive.filelist.append(record)
        archive.start_dir = file.tell()
        archive.writestr("archive/version", "3\n")
    return path


def _pickle(sizes: dict[str, int]) -> bytes:
    """What torch says of such tensors, whose memory nobody touches."""
    state = {name: torch.empty(numel) for name, numel in sizes.items()}
    with tempfile.TemporaryFile() as file:
        with torch.serialization.skip_data():
            torch.save(state, file)
        with zipfile.ZipFile(file) as archive:
            return archive.read("archive/data.pkl")


def _records(sizes: dict[str, int]) -> Iterator[zipfile.ZipInfo]:
    for number, numel in enumerate(sizes.values()):
        record = zipfile.ZipInfo(f"archive/data/{number}")
        record.file_size = record.compress_size = numel * _FLOAT
        record.CRC = _crc(numel * _FLOAT)
        yield record


@functools.cache
def _crc(nbytes: int) -> int:
    """The CRC-32 of zeros."""
    crc = 0
    for at in range(0, nbytes, len(_ZEROS)):
        crc = zlib.crc32(_ZEROS[: nbytes - at], crc)
    return crc


if __name__ == "__main__":
    write(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

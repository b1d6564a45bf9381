"""Archives past 4 GiB, in files that have holes."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cgpt_convert.archives.zip_directory import NoDirectory
from cgpt_convert.formats.torch.zip_reader import read as read_checkpoint
from cgpt_convert.sources.local import LocalFile, read
from cgpt_convert.tensors.tensor import replace
from tests.helpers import torch_save, zips
from tests.helpers.zips import Entry

GiB = 1 << 30


def sparse(path: Path, sizes: list[int], ends: Callable[[int], bytes]) -> list[int]:
    """A zip64 archive with uint8 tensors of those sizes, which begin and end with `ends(number)`.

    Returns the offsets of their data. Only the ends are written; the rest of the file is a hole.
    """
    records = [("archive/data.pkl", _pickle_of(sizes), 0)]
    records += [(f"archive/data/{n}", ends(n), size) for n, size in enumerate(sizes)]
    offsets, directory = [], bytearray()
    with path.open("wb") as file:
        for name, content, size in records:
            at, nbytes = file.tell(), size or len(content)
            full = zips.FULL32
            entry = Entry(name, b"", crc=0, nbytes=full, compressed=full, offset=full)
            wide = struct.pack("<2H3Q", 1, 24, nbytes, nbytes, at)
            directory += zips.central_header(entry.but(extra=wide), at)
            file.write(zips.local_header(entry.but(local_extra=wide)))
            offsets.append(file.tell())
            file.write(content)
            if size:
                file.seek(offsets[-1] + size - len(content))
                file.write(content)
        at, count = file.tell(), len(records)
        file.write(directory)
        end = file.tell()
        file.write(zips.END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), at))
        file.write(zips.LOCATOR64.pack(b"PK\6\7", 0, end, 1))
        file.write(zips.END.pack(b"PK\5\6", 0, 0, count, count, len(directory), zips.FULL32, 0))
    return offsets[1:]


def _pickle_of(sizes: list[int]) -> bytes:
    """What torch writes for one-element tensors, with their sizes replaced."""
    state = {str(number): np.zeros(1, np.uint8) for number in range(len(sizes))}
    pickle = zips.entries_of(torch_save.saved(state))["archive/data.pkl"].data
    for size in sizes:
        wide = b"\x8a\x05" + size.to_bytes(5, "little")  # LONG1, where torch wrote BININT1 1
        for before, after in ((b"", b"tq"), (b"K\0", b"\x85")):  # numel; offset and shape
            assert before + b"K\1" + after in pickle
            pickle = pickle.replace(before + b"K\1" + after, before + wide + after, 1)
    return pickle


@pytest.mark.large
def test_storages_past_4_gib_are_found_at_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    sizes = [5 * GiB, 1000, 6 * GiB + 7]
    offsets = sparse(path, sizes, lambda number: bytes([65 + number]) * 16)
    assert path.stat().st_blocks * 512 < 1 << 20  # it is sparse
    checkpoint = read_checkpoint(LocalFile(path))
    for number, size in enumerate(sizes):
        tensor = checkpoint[str(number)]
        assert tensor.shape == (size,)
        assert tensor.storage.offset == offsets[number]
        mark = bytes([65 + number]) * 16
        assert read(tensor.storage.source, tensor.storage.offset, 17)[:16] == mark
        assert read(tensor.storage.source, tensor.storage.offset + size - 16, 16) == mark
    with zipfile.ZipFile(path) as file:
        told = {info.filename: info.file_size for info in file.infolist()}
    assert [told[f"archive/data/{i}"] for i in range(3)] == sizes


@pytest.mark.large
def test_view_at_the_far_end_of_a_large_storage_has_its_elements(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    sparse(path, [5 * GiB], lambda _: bytes(range(16)))
    tensor = read_checkpoint(LocalFile(path))["0"]
    last = replace(tensor, shape=(4,), start=5 * GiB - 4)
    assert last.numpy().tolist() == [12, 13, 14, 15]
    strided = replace(tensor, shape=(2,), strides=(5 * GiB - 1,), start=0)
    assert strided.numpy().tolist() == [0, 15]


@pytest.mark.large
def test_cut_off_large_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    sparse(path, [5 * GiB], lambda _: b"x")
    os.truncate(path, 5 * GiB - 1)
    with pytest.raises(NoDirectory):
        read_checkpoint(LocalFile(path))

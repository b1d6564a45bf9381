"""torch: files and tensors of more than 4 GB, without the bytes."""

import io
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from isal.isal_zlib import crc32
from torch.utils.serialization import config

from cgpt_convert.core.findings import NO_CRC
from cgpt_convert.formats.torch import writer, zip_layout
from cgpt_convert.plan import Crc32, FilePlan, part_nbytes
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.tensor import Storage, Tensor
from tests.helpers import samples
from tests.helpers.render import content, request, tensor_bytes

F32 = BY_NAME["float32"]


class Zeros:
    """A source of zero bytes that takes no memory."""

    name = "zeros"

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def readinto(self, _offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes(len(buffer))

    def check_unchanged(self) -> None:
        pass


def zeros(name: str, nbytes: int) -> Tensor:
    return Storage(Zeros(nbytes), 0, nbytes, name).whole().renamed(name)


def huge(first: int) -> list[Tensor]:
    """Numbers past 32 bits one way and another, with small and empty tensors behind."""
    return [
        zeros("big", first),
        zeros("empty", 0),
        samples.tensor("w", F32),
        zeros("late", 70_000),
        samples.tensor("x", BY_NAME["uint16"]),
    ]


def sparse(plan: FilePlan, path: Path) -> None:
    """Write the file, its zeros as holes and its checksums as 0."""
    with path.open("wb") as file:
        for part in plan.parts:
            if isinstance(part, bytes):
                file.write(part)
            elif isinstance(part, Tensor) and not isinstance(part.storage.source, Zeros):
                file.write(tensor_bytes(part))
            else:
                file.seek(part_nbytes(part), 1)


@pytest.mark.parametrize("first", [(1 << 32) - 1, 5 << 30, (1 << 32) - 1000])
def test_torch_and_zipfile_find_everything_past_4_gb(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.bin"
    (plan,) = writer.plan(request("m.bin", *huge(first), aliases={"tied": "w"}))
    sparse(plan, path)
    assert path.stat().st_size == plan.nbytes
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    with config.patch("load.calculate_storage_offsets", True):  # type: ignore[attr-defined]
        state = torch.load(path, weights_only=True, mmap=True)
    found = writer.read(str(path))
    assert [finding.rule for finding in found.findings] == [NO_CRC]  # as `sparse` leaves it
    with zipfile.ZipFile(path) as archive:
        sizes = [archive.getinfo(f"archive/data/{i}").file_size for i in range(5)]
    assert sizes == [tensor.nbytes for tensor in huge(first)]
    assert state["tied"].data_ptr() == state["w"].data_ptr()
    for tensor in huge(first):
        assert found[tensor.name].shape == tensor.shape == tuple(state[tensor.name].shape)
        assert found[tensor.name].storage.offset % 64 == 0
        if not isinstance(tensor.storage.source, Zeros):
            assert state[tensor.name].numpy().tobytes() == tensor_bytes(tensor)
            assert tensor_bytes(found[tensor.name]) == tensor_bytes(tensor)


LONG = 1 << 20


class Pieces(io.RawIOBase):
    """A file that keeps what is written to it; of long pieces, all zeros here, the length."""

    def __init__(self) -> None:
        self.pieces: list[bytes | int] = [b""]

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if len(data) > LONG:
            self.pieces += [len(data), b""]
        else:
            self.pieces[-1] += bytes(data)  # type: ignore[operator]
        return len(data)


def crc_of_zeros(nbytes: int) -> int:
    crc = 0
    for start in range(0, nbytes, LONG):
        crc = crc32(bytes(min(LONG, nbytes - start)), crc)
    return crc


def pieces(plan: FilePlan) -> list[bytes | int]:
    """What a Pieces would have of the file once it is written."""
    file = Pieces()
    for part in plan.parts:
        covered = plan.parts[part.first] if isinstance(part, Crc32) else b""
        if part_nbytes(covered) > LONG:
            file.write(crc_of_zeros(part_nbytes(covered)).to_bytes(4, "little"))
        elif isinstance(part, Crc32):
            file.write(crc32(content(covered, {})).to_bytes(4, "little"))
        elif part_nbytes(part) > LONG:
            file.pieces += [part_nbytes(part), b""]
        else:
            file.write(content(part, {}))
    return file.pieces


@pytest.mark.large
def test_bytes_are_those_of_torch_save_past_4_gb() -> None:
    tensors = huge((1 << 32) + 5)
    state = OrderedDict(
        big=torch.zeros(tensors[0].nbytes, dtype=torch.uint8),
        empty=torch.zeros(0, dtype=torch.uint8),
        w=samples.as_torch(tensors[2]),
        late=torch.zeros(tensors[3].nbytes, dtype=torch.uint8),
        x=samples.as_torch(tensors[4]),
    )
    file = Pieces()
    torch.save(state, file)  # type: ignore[arg-type]
    (plan,) = writer.plan(request("m.bin", *tensors))
    assert file.pieces[:2] == pieces(plan)[:2]
    ours, theirs = pieces(plan)[2], file.pieces[2]
    assert isinstance(ours, bytes)
    assert isinstance(theirs, bytes)
    records, directory = ours.index(b"PK\1\2"), theirs.index(b"PK\1\2")
    entries = ours[records : ours.index(b"PK\6\6")]
    # they have one record more, the last, and its entry in the directory
    assert theirs.startswith(ours[:records])
    assert theirs[directory:].startswith(entries)
    end = theirs.index(b"PK\6\6")
    offset = plan.nbytes - len(ours) + directory
    count = entries.count(b"PK\1\2") + 1
    assert theirs[end:] == zip_layout.end_record(count, end - directory, offset)
    assert ours.endswith(
        zip_layout.end_record(count - 1, len(entries), plan.nbytes - len(ours) + records)
    )

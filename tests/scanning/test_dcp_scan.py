"""Distributed checkpoints that run code, or whose metadata points where it should not."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

from tests.helpers.hostile_pickles import Payload
from tests.helpers.running import run
from tests.helpers.zips import saved

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
INDEX, DATA = ".metadata", "__0_0.distcp"
ROWS = MetadataIndex("model.rows", [0, 0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hidden = torch.frombuffer(bytearray(saved(Payload())), dtype=torch.uint8)
    model = {"rows": torch.ones(4, 3), "hidden": hidden.clone()}
    save({"model": model, "step": 3}, checkpoint_id=tmp_path / "run", no_dist=True)
    return tmp_path / "run"


def change(folder: Path, edit: Callable[[Metadata], object]) -> None:
    metadata = pickle.loads((folder / INDEX).read_bytes())
    edit(metadata)
    (folder / INDEX).write_bytes(pickle.dumps(metadata))


def place(metadata: Metadata, **values: Any) -> None:
    for name, value in values.items():
        setattr(metadata.storage_data[ROWS], name, value)


def test_an_honest_checkpoint_is_clean(folder: Path) -> None:
    result = run("scan", folder / INDEX)
    assert result.code == 0
    assert "(PyTorch distributed checkpoint, 2 pickles)" in result.out  # and that of `step`


def test_metadata_that_would_run_code_is_found(folder: Path) -> None:
    change(folder, lambda m: m.storage_data.update({MetadataIndex("x"): Payload()}))
    result = run("scan", folder)
    assert result.code == 1
    assert "system('echo hostile')" in result.out


def test_an_object_that_would_run_code_is_found_in_its_file(folder: Path) -> None:
    data = (folder / DATA).read_bytes()
    archive = saved(Payload())
    place = _StorageInfo(DATA, len(data), len(archive))
    (folder / DATA).write_bytes(data + archive)

    def add(metadata: Metadata) -> None:
        metadata.state_dict_metadata["x"] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex("x")] = place

    change(folder, add)
    for path in (folder / INDEX, folder / DATA):
        result = run("scan", path)
        assert result.code == 1
        assert "system('echo hostile')" in result.out


def test_an_object_inside_the_data_of_a_tensor_is_found(folder: Path) -> None:
    """torch reads the object where the metadata says, whatever else is stored there."""
    archive = saved(Payload())
    at = (folder / DATA).read_bytes().index(archive)

    def add(metadata: Metadata) -> None:
        metadata.state_dict_metadata.pop("model.hidden")
        metadata.storage_data.pop(MetadataIndex("model.hidden", [0]))
        metadata.state_dict_metadata["x"] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex("x")] = _StorageInfo(DATA, at, len(archive))

    change(folder, add)
    result = run("scan", folder / INDEX)
    assert result.code == 1
    assert f"{DATA}:{at} (x)" in result.out
    assert "system('echo hostile')" in result.out


def overlap(metadata: Metadata) -> None:
    entry = metadata.state_dict_metadata["model.rows"]
    assert isinstance(entry, TensorStorageMetadata)
    entry.chunks = [*entry.chunks, type(entry.chunks[0])(torch.Size([3, 0]), torch.Size([1, 3]))]
    metadata.storage_data[MetadataIndex("model.rows", [3, 0])] = metadata.storage_data[ROWS]


WRONG: dict[str, tuple[Callable[[Metadata], object], str]] = {
    "a chunk outside its file": (lambda m: place(m, offset=10**9), "a chunk in it ends at"),
    "a file outside the folder": (
        lambda m: place(m, relative_path=f"../other/{DATA}"),
        "which is outside the folder",
    ),
    "overlapping chunks": (overlap, "two chunks overlap"),
    "chunks that share bytes": (
        lambda m: place(m, offset=m.storage_data[ROWS].offset + 1),
        "share bytes of a file",
    ),
    "an unknown transform": (
        lambda m: place(m, transform_descriptors=["stream.rot13/1"]),
        "is transformed by 'stream.rot13/1'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_metadata_that_points_elsewhere_is_found(name: str, folder: Path) -> None:
    edit, message = WRONG[name]
    change(folder, edit)
    result = run("scan", folder / INDEX)
    assert result.code == 3
    assert message in result.out


def test_metadata_without_the_files_is_judged_by_itself(folder: Path) -> None:
    (folder / DATA).unlink()
    assert run("scan", folder).code == 0

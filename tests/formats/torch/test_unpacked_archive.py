"""Archives that somebody unpacked are read as they were before."""

import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from cgpt_convert import open_checkpoint
from tests.helpers.running import run

STATE = {
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "tied": torch.ones(4),
    "half": torch.ones(3).bfloat16(),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    state = {**STATE, "again": STATE["tied"]}
    torch.save({"model": state, "step": 3}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def folder(file: Path) -> Path:
    with zipfile.ZipFile(file) as archive:
        archive.extractall(file.parent / "unpacked")
    (file.parent / "unpacked" / "model" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return file.parent / "unpacked" / "model"


def test_the_tensors_are_those_of_the_archive(file: Path, folder: Path, tmp_path: Path) -> None:
    with open_checkpoint(file) as packed, open_checkpoint(folder) as unpacked:
        assert list(unpacked) == list(packed)
        assert unpacked.ties == packed.ties
        assert unpacked.containers == packed.containers
        assert {name: tensor.strides for name, tensor in unpacked.items()} == {
            name: tensor.strides for name, tensor in packed.items()
        }
        for name, tensor in torch.load(file)["model"].items():
            assert torch.equal(unpacked[f"model.{name}"].torch(), tensor)
    assert run("digest", folder).out == run("digest", file).out
    assert run("convert", folder, "-o", tmp_path / "m.safetensors").code == 0
    assert run("verify", file, tmp_path / "m.safetensors").code == 0
    found = run("inspect", folder, "--json").json["findings"]
    assert [finding["id"] for finding in found] == ["CGPT002"]


def unread(folder: Path) -> str:
    """Why the two names of one storage cannot be read; the others can."""
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint) == ["model.turned", "model.half"]
        assert list(checkpoint.exotic) == ["model.tied", "model.again"]
        return checkpoint.exotic["model.tied"].detail


def test_a_missing_or_short_record_is_named(folder: Path) -> None:
    (folder / "data" / "1").write_bytes(b"\0")
    assert "'model/data/1' has 1 bytes" in unread(folder)
    (folder / "data" / "1").unlink()
    assert "no record 'model/data/1'" in unread(folder)


def test_a_key_outside_the_folder_is_not_opened(folder: Path) -> None:
    pickle = (folder / "data.pkl").read_bytes()
    key = b"X\1\0\0\x001"
    assert key in pickle
    (folder / "data.pkl").write_bytes(pickle.replace(key, b"X\x0c\0\0\0../../secret"))
    (folder.parent / "secret").write_bytes(bytes(16))
    assert "no record 'model/data/../../secret'" in unread(folder)


def test_an_archive_in_a_subfolder_is_pointed_to(folder: Path) -> None:
    result = run("inspect", folder.parent)
    assert result.code == 3
    assert str(folder) in result.err


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_recognised(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 3)).save(tmp_path / "script.pt")
    shutil.unpack_archive(tmp_path / "script.pt", tmp_path / "out", "zip")
    (folder,) = (tmp_path / "out").iterdir()
    with open_checkpoint(folder) as unpacked, open_checkpoint(tmp_path / "script.pt") as packed:
        assert list(unpacked) == list(packed) == ["weight", "bias"]
        assert unpacked.kind == "TorchScript archive, unpacked"

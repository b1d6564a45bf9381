"""`extract`: the raw bytes, the mapping, and the way back."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from cgpt_convert.formats.open import open_checkpoint
from tests.cli.test_inspect import damage
from tests.helpers import vendor
from tests.helpers.render import tensor_bytes
from tests.helpers.running import contents, partials, run


def bytes_of(value: torch.Tensor) -> bytes:
    """The elements in C order, by torch."""
    return value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def assert_same(path: Path, state: vendor.State) -> None:
    """What lies at `path` has the very tensors of `state`, in whatever order."""
    found = open_checkpoint(path)
    assert sorted(found) == sorted(state)
    for name, value in state.items():
        assert found[name].shape == tuple(value.shape)
        assert found[name].dtype.name == str(value.dtype).removeprefix("torch.")
        assert tensor_bytes(found[name]) == bytes_of(value)


def test_each_storage_lies_under_its_number_byte_for_byte(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "parameters"
    result = run("extract", model, "-o", f"{out}/", "--json")
    assert result.code == 0
    with zipfile.ZipFile(model) as archive:
        records = {name for name in archive.namelist() if "/data/" in name}
        expected = {name.rpartition("/")[2]: archive.read(name) for name in records}
    found = contents(out)
    mapping = json.loads(found.pop("mapping.json"))
    assert found == expected
    assert result.json["files"] == len(expected)
    assert result.json["nbytes"] == sum(map(len, contents(out).values()))
    assert list(mapping["tensors"]) == list(open_checkpoint(model))


def test_the_mapping_tells_torchs_view_and_the_digest(
    state: vendor.State, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parameters"
    run("extract", model, "-o", out)
    rows = json.loads((out / "mapping.json").read_text())["tensors"]
    for name, value in state.items():
        row = rows[name]
        data = (out / row["file"]).read_bytes()
        assert row["dtype"] == str(value.dtype).removeprefix("torch.")
        assert row["shape"] == list(value.shape)
        assert row["strides"] == list(value.stride())
        assert row["start"] == value.storage_offset()
        assert row["byteorder"] == "little"
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        flat = torch.frombuffer(bytearray(data), dtype=value.dtype)
        assert torch.equal(flat.as_strided(row["shape"], row["strides"], row["start"]), value)
    assert rows["lm_head.weight"]["tied_to"] == "transformer.wte.weight"
    assert rows["lm_head.weight"]["file"] == rows["transformer.wte.weight"]["file"]


def test_by_name_each_tensor_is_a_file_in_c_order(
    state: vendor.State, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parameters"
    assert run("extract", model, "-o", out, "--by", "name").code == 0
    found = contents(out)
    del found["mapping.json"]
    unique = {name: value for name, value in state.items() if name != "lm_head.weight"}
    assert found == {name: bytes_of(value) for name, value in unique.items()}
    assert_same(out, state)


@pytest.mark.parametrize("by", ["storage", "name"])
def test_the_folder_is_read_by_every_command(
    state: vendor.State, model: Path, tmp_path: Path, by: str
) -> None:
    first, second, again = (tmp_path / name for name in ("first", "second.safetensors", "again"))
    assert run("extract", model, "-o", first, "--by", by).code == 0
    assert_same(first, state)
    assert run("inspect", first, "--check").code == 0
    assert run("convert", first, "-o", second).code == 0
    assert_same(second, state)
    direct = tmp_path / "direct.safetensors"
    run("convert", model, "-o", direct)
    assert second.read_bytes() == direct.read_bytes()
    assert run("extract", first, "-o", again, "--by", by).code == 0
    assert contents(again) == contents(first)


@pytest.mark.parametrize(
    "name", ["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "lm_head.weight"]
)
def test_one_tensor_goes_to_standard_output(state: vendor.State, model: Path, name: str) -> None:
    result = run("extract", model, "--stdout", name)
    assert (result.code, result.err) == (0, "")
    assert result.raw == bytes_of(state[name])


def test_a_tensor_that_is_not_there_is_bad_usage(model: Path, tmp_path: Path) -> None:
    for said, *words in (
        ("no dense tensor 'nothing'", "--stdout", "nothing"),
        ("no tensor matches", "-o", tmp_path / "out", "--match", "nothing"),
    ):
        result = run("extract", model, *words)
        assert result.code == 2
        assert result.out == ""
        assert said in result.err
    assert not (tmp_path / "out").exists()


def test_output_and_stdout_exclude_each_other(model: Path, tmp_path: Path) -> None:
    assert run("extract", model).code == 2
    assert run("extract", model, "-o", tmp_path / "out", "--stdout", "lm_head.weight").code == 2


@pytest.mark.parametrize("by", ["storage", "name"])
def test_matching_takes_some_tensors(model: Path, tmp_path: Path, by: str) -> None:
    out = tmp_path / "out"
    words = ("--match", "*.ln_1.*", "--exclude", "*.bias", "--by", by)
    assert run("extract", model, "-o", out, *words).code == 0
    assert list(open_checkpoint(out)) == [f"transformer.h.{i}.ln_1.weight" for i in (0, 1)]


@pytest.mark.parametrize(
    "name",
    [
        "../../evil",
        "/etc/evil",
        "a/../../b",
        "..",
        "mapping.json",
        "MAPPING.JSON",
        "con",
        "",
        "-rf",
        "~",
        "x" * 300,
        "new\nline",
        "1/0",
        "arrays/0",
        "größe",
    ],
)
@pytest.mark.parametrize("by", ["storage", "name"])
def test_no_name_leads_out_of_the_folder_or_over_the_mapping(
    tmp_path: Path, name: str, by: str
) -> None:
    source = tmp_path / "in.safetensors"
    state = {name: torch.arange(3), "plain": torch.ones(2)}
    safetensors.torch.save_file(state, source)
    (tmp_path / "inside").mkdir()
    out = tmp_path / "inside" / "out"
    assert run("extract", source, "-o", out, "--by", by).code == 0
    outside = [key for key in contents(tmp_path) if not key.startswith("inside/out/")]
    assert outside == ["in.safetensors"]
    assert len(contents(out)) == 3
    assert_same(out, state)


def test_storages_of_two_folders_of_an_archive_are_kept_apart(tmp_path: Path) -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight + torch.full((3,), 2.0)

    path = tmp_path / "script.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.freeze(torch.jit.script(Module().eval())).save(str(path))
    source = open_checkpoint(path)
    assert run("extract", path, "-o", tmp_path / "out").code == 0
    found = open_checkpoint(tmp_path / "out")
    assert {n: tensor_bytes(t) for n, t in found.items()} == {
        n: tensor_bytes(t) for n, t in source.items()
    }


@pytest.mark.parametrize("by", ["storage", "name"])
def test_damage_is_named_and_leaves_nothing(model: Path, tmp_path: Path, by: str) -> None:
    path = tmp_path / "damaged.bin"
    path.write_bytes(model.read_bytes())
    damage(path, "/data/0", 7)
    result = run("extract", path, "-o", tmp_path / "out", "--by", by)
    assert result.code == 3
    assert "transformer.wte.weight" in result.err
    assert contents(tmp_path).keys() == {"damaged.bin"}
    assert partials(tmp_path) == []
    result = run("extract", path, "--stdout", "lm_head.weight")
    assert result.code == 3
    assert "lm_head.weight" in result.err


def test_a_changed_file_of_the_folder_is_found(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("extract", model, "-o", out)
    with (out / "3").open("r+b") as file:
        file.write(b"\xff\xff")
    assert run("inspect", out, "--check").code == 1
    result = run("convert", out, "-o", tmp_path / "x.safetensors")
    assert result.code == 3
    assert not (tmp_path / "x.safetensors").exists()


def test_all_missing_files_of_the_folder_are_listed(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("extract", model, "-o", out)
    for name in ("3", "17"):
        (out / name).unlink()
    result = run("inspect", out)
    assert result.code == 3
    assert "2 files are missing: '3', '17'" in result.err


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../secret"},
        {"file": "/etc/passwd"},
        {"file": "0/../../x"},
        {"file": 5},
        {"file": ["0"]},
        {"dtype": "object"},
        {"dtype": None},
        {"shape": [True]},
        {"shape": "64"},
        {"shape": [1 << 62, 1 << 62]},
        {"strides": [1, 2, 3]},
        {"strides": [1 << 40, 1]},
        {"start": 1 << 40},
        {"start": "0"},
        {"byteorder": "middle"},
        {"crc32": "xyz"},
        {"crc32": 5},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_mapping_that_lies_is_refused_with_the_tensors_name(
    model: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    out = tmp_path / "out"
    run("extract", model, "-o", out, "--match", "transformer.wte.weight")
    mapping = json.loads((out / "mapping.json").read_text())
    mapping["tensors"]["transformer.wte.weight"].update(change)
    (out / "mapping.json").write_text(json.dumps(mapping))
    result = run("inspect", out)
    assert result.code == 3
    assert "transformer.wte.weight" in result.err
    assert result.out == ""


WRONG = [
    {"format": None},
    {"format": "other"},
    {"tensors": []},
    {"tensors": {"x": 1}},
    {"exotic": []},
    {"exotic": {"x": 1}},
    {"exotic": {"x": {"parts": {"y": {}}}}},
    {"metadata": [1]},
    {"metadata": {"x": 1}},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_a_mapping_of_another_form_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    right = {"format": "cgpt-convert parameters 1", "tensors": {}, "exotic": {}, "metadata": {}}
    path = tmp_path / "mapping.json"
    path.write_text(json.dumps(right))
    assert run("inspect", tmp_path).code == 0
    path.write_text(json.dumps(right | change))
    result = run("inspect", tmp_path)
    assert result.code == 3
    assert result.out == ""


def test_sparse_tensors_are_kept_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "sparse.pt"
    torch.save({"s": torch.eye(4).to_sparse(), "w": torch.ones(2)}, path)
    assert run("extract", path, "-o", tmp_path / "out").code == 0
    source, found = open_checkpoint(path), open_checkpoint(tmp_path / "out")
    assert found.exotic.keys() == {"s"}
    for ours, theirs in zip(found.exotic["s"].parts, source.exotic["s"].parts, strict=True):
        assert tensor_bytes(ours) == tensor_bytes(theirs)
    result = run("extract", path, "-o", tmp_path / "names", "--by", "name")
    assert result.code == 3
    assert "tensor 's' is not dense: sparse_coo" in result.err
    words = ("--by", "name", "--exclude", "s")
    assert run("extract", path, "-o", tmp_path / "names", *words).code == 0


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_in_a_pickle_are_numbered(tmp_path: Path, protocol: int) -> None:
    arrays = {"a": np.arange(4.0), "b": np.ones(3)}
    torch.save(arrays, tmp_path / "m.bin", pickle_protocol=protocol)
    out = tmp_path / "out"
    assert run("extract", tmp_path / "m.bin", "-o", out).code == 0
    assert (out / "arrays" / "0").read_bytes() == arrays["a"].tobytes()
    assert (out / "arrays" / "1").read_bytes() == arrays["b"].tobytes()
    rows = run("inspect", tmp_path / "m.bin", "--json").json["tensors"]
    assert [row["offset"] for row in rows] == [None, None]

"""`--salvage`: what is whole of a truncated or damaged file is written, and only that."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file

from cgpt_convert.formats.open import open_checkpoint
from tests.helpers import vendor
from tests.helpers.running import Result, contents, run
from tests.helpers.small_models import as_kind, write

Tensors = dict[str, torch.Tensor]


def state() -> Tensors:
    """Contiguous and transposed tensors, views of one storage, a tie, and an empty one."""
    numbers = torch.randn(4, 60, generator=torch.Generator().manual_seed(6))
    shared = torch.arange(100.0)
    return {
        "first": numbers[0].clone(),
        "turned": numbers.t(),
        "head": shared[:50],
        "tail": shared[50:],
        "tied": numbers.t(),
        "empty": torch.ones(0, 3),
        "last": torch.arange(700, dtype=torch.int16),
    }


@pytest.fixture(scope="module")
def saved() -> bytes:
    return written()


def written(**how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state(), file, **how)
    return file.getvalue()


def at(path: Path, data: bytes | bytearray) -> Path:
    path.write_bytes(data)
    return path


def salvaged(source: Path, *words: object) -> tuple[Result, Tensors]:
    """The run, and what it wrote as the safetensors library reads it; nothing if it is refused."""
    out = source.parent / "out.safetensors"
    result = run(
        *("convert", source, "-o", out, "--tied", "copy", "--salvage", "--json", "--overwrite"),
        *words,
    )
    if result.code not in (0, 1):
        assert list(result.json) == ["error"]
        return result, {}
    return result, safetensors.torch.load_file(out)


def names(result: Result) -> set[str]:
    return {row["name"] for row in result.json["lost"]}


def assert_part_of(found: Tensors, whole: Tensors) -> None:
    """Every tensor that was written is what torch has, bit for bit."""
    for name, tensor in found.items():
        assert torch.equal(tensor, whole[name]), name


def needed(data: bytes, tmp_path: Path) -> dict[str, int]:
    """The byte behind the last one that each tensor needs."""
    ends = {}
    for name, tensor in open_checkpoint(at(tmp_path / "whole.bin", data)).items():
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        end = tensor.storage.offset + (tensor.start + last + 1) * tensor.stored.nbytes
        ends[name] = end if tensor.numel else 0
    return ends


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_of_every_truncation_exactly_the_whole_tensors_are_written(
    kind: str, tmp_path: Path
) -> None:
    data = written(_use_new_zipfile_serialization=kind == "zip")
    ends = needed(data, tmp_path)
    first = min(s.offset for s in open_checkpoint(tmp_path / "whole.bin").storages)
    start = data.index(b"PK\7\x08") if kind == "zip" else first - 8  # where the pickles end
    borders = {end + more for end in ends.values() for more in (-1, 0, 1)}
    for nbytes in sorted({*range(0, len(data), 97), *borders} - {len(data)}):
        if not 0 <= nbytes < len(data):
            continue
        result, found = salvaged(at(tmp_path / "cut.bin", data[:nbytes]))
        whole = {name for name, end in ends.items() if end <= nbytes}
        if nbytes < start:
            assert result.code == 3
            continue
        assert set(found) == whole
        assert names(result) == set(ends) - whole
        assert result.code == (0 if set(ends) == whole else 1)
        assert_part_of(found, state())
        assert all(
            f"the file is truncated at byte {nbytes:,}" in row["why"] for row in result.json["lost"]
        )


def test_a_whole_file_is_written_as_without_the_option(saved: bytes, tmp_path: Path) -> None:
    source = at(tmp_path / "whole.bin", saved)
    for name, more in (("usual", ()), ("salvaged", ("--salvage",))):
        assert run("convert", source, "-o", tmp_path / f"{name}.safetensors", *more).code == 0
        assert run("extract", source, "-o", tmp_path / name, *more).code == 0
    usual, other = ((tmp_path / f"{n}.safetensors").read_bytes() for n in ("usual", "salvaged"))
    assert usual == other
    assert contents(tmp_path / "usual") == contents(tmp_path / "salvaged")


def flipped(data: bytes, tmp_path: Path, name: str) -> bytes:
    """The file with one bit changed in the middle of the tensor's storage."""
    storage = open_checkpoint(at(tmp_path / "whole.bin", data))[name].storage
    changed = bytearray(data)
    changed[storage.offset + storage.nbytes // 2] ^= 4
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "lost"),
    [("turned", {"turned", "tied"}), ("head", {"head", "tail"}), ("last", {"last"})],
)
def test_all_tensors_of_a_damaged_storage_are_left_out_and_named(
    saved: bytes, name: str, lost: set[str], tmp_path: Path
) -> None:
    source = at(tmp_path / "damaged.bin", flipped(saved, tmp_path, name))
    torch.load(source)  # which does not look at checksums
    refused = run("convert", source, "-o", tmp_path / "never.safetensors")
    assert refused.code == 3
    assert "--salvage" in refused.err
    result, found = salvaged(source)
    assert result.code == 1
    assert names(result) == lost
    assert set(found) == set(state()) - lost
    assert_part_of(found, state())
    for row in result.json["lost"]:
        tensor = state()[row["name"]]
        assert row["nbytes"] == tensor.numel() * tensor.element_size()
        assert "does not match its checksum" in row["why"]


def test_what_is_lost_is_told_to_people_too(saved: bytes, tmp_path: Path) -> None:
    source = at(tmp_path / "damaged.bin", flipped(saved, tmp_path, "last"))
    for words in (("convert", "-o", tmp_path / "out.npz"), ("extract", "-o", tmp_path / "out")):
        result = run(words[0], source, *words[1:], "--salvage")
        assert result.code == 1
        assert "  lost: last: 1,400 bytes, storage '4' does not match its checksum" in result.out


def test_only_what_is_asked_for_is_looked_at(saved: bytes, tmp_path: Path) -> None:
    source = at(tmp_path / "damaged.bin", flipped(saved, tmp_path, "last"))
    result, found = salvaged(source, "--exclude", "last")
    assert (result.code, names(result)) == (0, set())
    assert set(found) == set(state()) - {"last"}
    result, _ = salvaged(source, "--match", "last")
    assert result.code == 3
    assert "none of the 1 selected tensors is intact" in result.err
    dry, _ = salvaged(source, "--dry-run")
    assert (dry.code, names(dry)) == (1, {"last"})


@pytest.mark.parametrize("by", ["storage", "name"])
def test_extract_leaves_out_the_same(saved: bytes, by: str, tmp_path: Path) -> None:
    source = at(tmp_path / "damaged.bin", flipped(saved, tmp_path, "turned"))
    out = tmp_path / "out"
    result = run("extract", source, "-o", out, "--by", by, "--salvage", "--json")
    assert result.code == 1
    assert names(result) == {"turned", "tied"}
    mapping = json.loads((out / "mapping.json").read_text())
    assert set(mapping["tensors"]) == set(state()) - {"turned", "tied"}
    for name, row in mapping["tensors"].items():
        raw = np.frombuffer((out / row["file"]).read_bytes(), row["dtype"])
        numel = state()[name].numel()
        assert np.array_equal(raw[row["start"] : row["start"] + numel], state()[name].flatten())
    assert run("extract", source, "--stdout", "first", "--salvage").code == 2


def test_a_cut_in_the_outer_root_takes_no_other_one(tmp_path: Path) -> None:
    value = {"optimizer": {"m": torch.ones(500)}, "state_dict": {"w": torch.ones(500)}}
    file = io.BytesIO()
    torch.save(value, file)
    source = tmp_path / "cut.ckpt"
    offset = open_checkpoint(at(source, file.getvalue()))["state_dict.w"].storage.offset
    at(source, file.getvalue()[: offset + 8])
    result, _ = salvaged(source)
    assert result.code == 3  # the weights are what is lost: the optimizer's state is not taken
    assert "none of the 1 selected tensors is intact" in result.err
    result, found = salvaged(source, "--root", ".")
    assert (result.code, set(found)) == (1, {"optimizer.m"})


def test_sparse_tensors_are_lost_with_any_of_their_parts(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"sparse": torch.eye(40).to_sparse(), "dense": torch.ones(3)}, file)
    data = bytearray(file.getvalue())
    parts = open_checkpoint(at(tmp_path / "whole.bin", file.getvalue())).exotic["sparse"].parts
    data[parts[1].storage.offset] ^= 1
    result = run("extract", at(tmp_path / "bad.bin", data), "-o", tmp_path / "out", "--salvage")
    assert result.code == 1
    assert "lost: sparse: " in result.out


def test_deflated_storages_that_cannot_be_inflated(tmp_path: Path) -> None:
    source = tmp_path / "model.npz"
    zeros, ones, twos = (np.full(5000, i) for i in range(3))
    np.savez_compressed(source, w0=zeros, w1=ones, w2=twos)
    data = bytearray(source.read_bytes())
    data[data.index(b"w1.npy") + 60] ^= 0xFF
    result, found = salvaged(at(source, data))
    assert result.code == 1  # also if its header cannot be inflated either
    assert names(result) == {"w1"}
    assert set(found) == {"w0", "w2"}


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_files_whose_header_comes_first(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "model", vendor.TINY)
    source = as_kind(tmp_path / "model", kind, tmp_path / "kind")
    plain = tmp_path / "plain.safetensors"
    assert run("convert", source, "-o", plain, "--tied", "copy").code == 0
    whole = load_file(plain)
    data = source.read_bytes()
    cut = at(tmp_path / f"cut.{kind}", data[: len(data) * 2 // 3])
    refused = run("convert", cut, "-o", tmp_path / "never.npz")
    assert refused.code == 3
    assert "--salvage" in refused.err
    result, found = salvaged(cut)
    assert result.code == 1
    assert set(found) | names(result) == set(whole)
    assert found
    assert names(result)
    assert not names(result) & set(found)
    for name, tensor in found.items():
        assert np.array_equal(tensor.numpy(), whole[name])


def test_an_incomplete_model_becomes_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    vendor.write(vendor.TINY, folder)
    path = folder / "pytorch_model.bin"
    checkpoint = open_checkpoint(path)
    name = next(name for name in checkpoint if name.endswith("h.0.mlp.c_fc.weight"))
    at(path, flipped(path.read_bytes(), tmp_path, name))
    for to in ("gguf", "hf"):
        result = run("convert", folder, "-o", tmp_path / f"x.{to}", "--to", to, "--salvage")
        assert result.code == 3
        assert "needs the whole model" in result.err
        assert name in result.err
    result = run("extract", folder, "-o", tmp_path / "raw", "--properties", "--salvage")
    assert result.code == 3
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", "whole.bin"}


@pytest.mark.parametrize("how", ["missing", "cut", "cut in its pickle"])
def test_shards_that_are_missing_or_cut(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    vendor.write(vendor.TINY, folder, "hf", shards=True)
    whole = vendor.state_dict(vendor.TINY, "hf")
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())["weight_map"]
    shard = folder / "pytorch_model-00002-of-00002.bin"
    inside = {name for name, file in index.items() if file == shard.name}
    data = shard.read_bytes()
    if how == "missing":
        shard.unlink()
    else:
        at(shard, data[: len(data) // 2 if how == "cut" else 100])
    refused = run("convert", folder, "-o", tmp_path / "never.npz")
    assert refused.code == 3
    result, found = salvaged(folder)
    assert result.code == 1
    assert names(result) <= inside
    assert set(found) == set(whole) - names(result)
    assert_part_of(found, whole)
    if how != "cut":
        assert names(result) == inside
        assert {row["nbytes"] for row in result.json["lost"]} == {None}
        assert all(shard.name in row["why"] for row in result.json["lost"])
    at(shard, data)
    assert salvaged(folder)[0].code == 0


def test_nothing_to_salvage(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    vendor.write(vendor.TINY, folder, "hf", shards=True)
    for shard in folder.glob("*.bin"):
        shard.unlink()
    assert "2 of 2 shards missing" in salvaged(folder)[0].err
    assert salvaged(at(tmp_path / "empty", b""))[0].code == 3
    assert salvaged(tmp_path / "absent")[0].code == 2

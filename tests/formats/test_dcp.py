"""Distributed checkpoints equal what torch makes of them; what contradicts itself is named."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from cgpt_convert import open_checkpoint
from cgpt_convert.core.errors import CgptError, Malformed
from tests.helpers import zips
from tests.helpers.running import ROOT, contents, run
from tests.helpers.servers import nginx

RANKS = (1, 2, 4)
INDEX = ".metadata"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    command = (sys.executable, "-m", "tests.helpers.dcp_runs", str(folder))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run2(runs: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint of two ranks, to change."""
    shutil.copytree(runs / "dcp-2", tmp_path / "run")
    return tmp_path / "run"


def flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield ".".join(path), value
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from flat(item, (*path, key))


def merged(runs: Path, ranks: int) -> dict[str, torch.Tensor]:
    """The tensors, as torch merges them."""
    return dict(flat(torch.load(runs / f"dcp-{ranks}.pt")))


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape), name
        assert torch.equal(tensor, other[name]), name


def read(path: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {name: tensor.torch() for name, tensor in checkpoint.items()}


@pytest.mark.parametrize("ranks", RANKS)
def test_every_element_is_that_of_torch(runs: Path, ranks: int) -> None:
    expected = merged(runs, ranks)
    assert len(expected) == 16
    assert_same(read(runs / f"dcp-{ranks}"), expected)
    assert_same(read(runs / f"dcp-{ranks}" / INDEX), expected)


@pytest.mark.parametrize("ranks", RANKS)
def test_the_commands_take_a_checkpoint_for_the_file_that_torch_makes(
    runs: Path, ranks: int, tmp_path: Path
) -> None:
    folder, file = runs / f"dcp-{ranks}", runs / f"dcp-{ranks}.pt"
    for words in (("digest",), ("digest", "--root", ".")):
        assert run(*words, folder).out == run(*words, file).out
    output = tmp_path / "model.safetensors"
    assert run("convert", folder, "-o", output, "--verify").code == 0
    expected = {name.removeprefix("model."): t for name, t in merged(runs, ranks).items()}
    expected.pop("rng")
    assert_same(safetensors.torch.load_file(output), expected)
    assert run("verify", folder, output).code == 0
    assert run("verify", file, output).code == 0
    assert run("lock", folder, "-o", tmp_path / "lock.json").code == 0
    assert run("verify", "--lock", tmp_path / "lock.json", file).code == 0
    assert run("diff", folder, file).code == 0
    checked = run("inspect", "--check", "--json", folder).json["check"]
    assert checked["ok"]
    assert checked["recorded"] == checked["storages"] - 1 >= len(expected)  # one is empty


def test_the_dicts_around_the_tensors_are_those_of_the_file(runs: Path) -> None:
    with open_checkpoint(runs / "dcp-4") as folder, open_checkpoint(runs / "dcp-4.pt") as file:
        assert folder.within == {name: file.within[name] for name in folder.within}
        assert {"": "", "model": ""}.items() <= folder.containers.items()
        assert {leaf.path for leaf in folder.others} == {leaf.path for leaf in file.others}


def test_objects_that_are_not_read_are_named(runs: Path) -> None:
    (finding,) = run("inspect", "--json", runs / "dcp-2").json["findings"]
    assert (finding["id"], finding["level"]) == ("CGPT034", "note")
    assert "'optim.step'" in finding["detail"]


def test_ranks_without_coordination_are_merged(runs: Path) -> None:
    assert {path.name for path in (runs / "uncoordinated").glob("*.metadata")} == {
        "__0.metadata",
        "__1.metadata",
    }
    expected = {f"model.{name}": tensor for name, tensor in read(runs / "uncoordinated").items()}
    assert len(expected) == 11
    assert_same({name: merged(runs, 2)[name] for name in expected}, expected)
    with pytest.raises(Malformed, match=r"none has \[4:7, 0:5\]"):
        open_checkpoint(runs / "uncoordinated" / "__0.metadata")


def test_chunks_in_safetensors_are_read(runs: Path) -> None:
    assert_same(read(runs / "serialized"), read(runs / "uncoordinated"))


def test_provenance_names_every_chunk(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    assert run("convert", runs / "dcp-2", "-o", output).code == 0
    with safetensors.safe_open(output, "pt") as file:
        rows = json.loads(file.metadata()["cgpt_convert.tensors"])
    for name, row in rows.items():
        listed = {chunk.partition(":")[0] for chunk in row.get("chunks", ())}
        assert listed <= {"__0_0.distcp", "__1_0.distcp"}
        assert bool(listed) == (name != "empty")
    assert [chunk.partition(" ")[2] for chunk in rows["columns"]["chunks"]] == [
        "[0:3, 0:5]",
        "[0:3, 5:10]",
    ]


def test_inspecting_reads_the_metadata_only(run2: Path) -> None:
    before = run("inspect", "--json", run2)
    for path in run2.glob("*.distcp"):
        path.write_bytes(bytes(path.stat().st_size))
    after = run("inspect", "--json", run2)
    assert after == before
    assert after.code == 0
    row = next(row for row in after.json["tensors"] if row["name"] == "model.columns")
    assert [chunk["start"] for chunk in row["chunks"]] == [[0, 0], [0, 5]]
    assert [chunk["file"] for chunk in row["chunks"]] == ["__0_0.distcp", "__1_0.distcp"]
    assert run("digest", run2).code == 3


def test_a_missing_rank_is_named_and_the_rest_is_salvaged(
    run2: Path, runs: Path, tmp_path: Path
) -> None:
    (run2 / "__0_0.distcp").unlink()
    result = run("inspect", run2)
    assert result.code == 3
    assert "1 of 2 files of the checkpoint are missing: '__0_0.distcp'" in result.err
    output = tmp_path / "some.safetensors"
    result = run("convert", "--salvage", "--root", ".", run2, "-o", output)
    assert "model.rows" in result.out + result.err
    left = safetensors.torch.load_file(output)
    expected = merged(runs, 2)
    assert {"model.rows", "model.columns"} <= expected.keys() - left.keys()
    assert {"model.scalar", "model.turned"} <= left.keys()
    assert_same(left, {name: expected[name] for name in left})


def test_the_tensors_before_the_end_of_a_file_that_is_cut_off_are_salvaged(
    run2: Path, runs: Path, tmp_path: Path
) -> None:
    path = run2 / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "a chunk in it ends at" in run("inspect", run2).err
    output = tmp_path / "some.safetensors"
    result = run("convert", "--salvage", "--root", ".", "--json", run2, "-o", output)
    (lost,) = result.json["lost"]
    assert (lost["why"], result.code) == ("the file '__0_0.distcp' is truncated", 1)
    left, expected = safetensors.torch.load_file(output), merged(runs, 2)
    assert expected.keys() - left.keys() == {lost["name"]}
    assert_same(left, {name: expected[name] for name in left})


def test_a_damaged_chunk_is_noticed(run2: Path, runs: Path, tmp_path: Path) -> None:
    expected = merged(runs, 2)
    value = expected["model.columns"][:, 5:].contiguous().numpy().tobytes()
    path = run2 / "__1_0.distcp"
    data = path.read_bytes()
    assert data.count(value) == 1
    path.write_bytes(data.replace(value, value[:-1] + bytes((value[-1] ^ 1,))))
    for words in (("digest",), ("convert", "-o", tmp_path / "never.safetensors")):
        result = run(*words, run2)
        assert result.code == 3
        assert "does not match its checksum" in result.err
    checked = run("inspect", "--check", "--json", run2)
    assert checked.code == 1
    assert checked.json["check"]["tensors"] == ["model.columns"]
    output = tmp_path / "some.safetensors"
    run("convert", "--salvage", "--root", ".", run2, "-o", output)
    assert expected.keys() - safetensors.torch.load_file(output).keys() == {"model.columns"}


def change(folder: Path, edit: Callable[[Metadata], object]) -> Path:
    """Write the metadata again, as `edit` changes it."""
    metadata = pickle.loads((folder / INDEX).read_bytes())
    edit(metadata)
    (folder / INDEX).write_bytes(pickle.dumps(metadata))
    return folder


ROWS = MetadataIndex("model.rows", [4, 0])


def place(metadata: Metadata, **values: Any) -> None:
    """Change the place of a chunk."""
    for name, value in values.items():
        setattr(metadata.storage_data[ROWS], name, value)


def chunks(metadata: Metadata) -> list[ChunkStorageMetadata]:
    entry = metadata.state_dict_metadata["model.rows"]
    assert isinstance(entry, TensorStorageMetadata)
    return entry.chunks


def chunk(metadata: Metadata, number: int, **values: Any) -> None:
    """Change a chunk."""
    for name, value in values.items():
        setattr(chunks(metadata)[number], name, torch.Size(value))


def more(metadata: Metadata) -> None:
    """Add a chunk inside another."""
    chunks(metadata).append(ChunkStorageMetadata(torch.Size([5, 1]), torch.Size([1, 2])))
    metadata.storage_data[MetadataIndex("model.rows", [5, 1])] = metadata.storage_data[ROWS]


WRONG: dict[str, tuple[Callable[[Metadata], object], str]] = {
    "past the end": (
        lambda m: place(m, offset=10**9),
        "bytes, but a chunk in it ends at byte 1,000,0",
    ),
    "before the start": (lambda m: place(m, offset=-1), "the offset -1 and length"),
    "a parent folder": (
        lambda m: place(m, relative_path="../run/__0_0.distcp"),
        "a chunk is in the file '../run/__0_0.distcp', which is outside",
    ),
    "an absolute path": (lambda m: place(m, relative_path="/etc/passwd"), "outside the folder"),
    "a path that is none": (lambda m: place(m, relative_path=3), "the file of a chunk is 3"),
    "shared bytes": (lambda m: place(m, offset=m.storage_data[ROWS].offset + 1), "share bytes"),
    "a smaller place": (lambda m: place(m, length=3), "its shape needs 48"),
    "no place": (
        lambda m: m.storage_data.pop(ROWS),
        "no entry for the chunk at [4, 0] of 'model.rows'",
    ),
    "an overlap": (more, "two chunks overlap: __"),
    "a hole": (
        lambda m: chunks(m).pop(),
        "the chunks have 16 of 28 elements; none has [4:7, 0:4]",
    ),
    "a chunk outside": (lambda m: chunk(m, 1, sizes=[4, 4]), "is outside the shape 7x4"),
    "another rank": (lambda m: chunk(m, 0, sizes=[4, 4, 1]), "the shape [4, 4, 1]"),
    "a transform": (
        lambda m: place(m, transform_descriptors=["stream.rot13/1"]),
        "is transformed by 'stream.rot13/1'",
    ),
    "compression": (
        lambda m: place(m, transform_descriptors=["stream.zstd/1"]),
        "is compressed with zstd",
    ),
    "an object in place of a number": (
        lambda m: place(m, offset=torch.Size([1])),
        "not an integer: torch.Size",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_metadata_that_contradicts_itself_is_named(name: str, run2: Path) -> None:
    edit, message = WRONG[name]
    result = run("digest", "--root", ".", change(run2, edit))
    assert result.code == 3
    assert message in result.err


def test_a_chunk_that_is_not_what_the_metadata_says_is_named(run2: Path) -> None:
    def swap(metadata: Metadata) -> None:
        data, other = metadata.storage_data, MetadataIndex("model.middle", [0, 3, 0])
        data[ROWS], data[other] = data[other], data[ROWS]

    change(run2, swap)
    with open_checkpoint(run2) as checkpoint, pytest.raises(Malformed) as caught:
        checkpoint["model.rows"].numpy()
    assert "the chunk of 'model.rows' is float64 [2, 3, 5], .metadata says float32 [3, 4]" in str(
        caught.value
    )


def test_metadata_is_never_executed(run2: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "hostile").write_text, ("x",))

    def hide(metadata: Metadata) -> None:
        metadata.storage_meta.modules = [Hostile()]  # type: ignore[union-attr]

    change(run2, hide)
    assert run("inspect", "--json", run2).json["foreign"] == ["builtins.getattr"]
    assert not (tmp_path / "hostile").exists()


def test_an_incomplete_checkpoint_is_named(run2: Path) -> None:
    (run2 / INDEX).unlink()
    result = run("inspect", run2)
    assert result.code == 3
    assert "chunks of a distributed checkpoint but no .metadata" in result.err
    result = run("inspect", run2 / "__0_0.distcp")
    assert "pass its folder" in result.err


def test_weights_beside_a_checkpoint_do_not_hide_it(run2: Path) -> None:
    torch.save({"a": torch.ones(1)}, run2 / "common.pt")
    assert run("inspect", "--json", run2).json["kind"] == "PyTorch distributed checkpoint"


def test_truncated_and_changed_metadata_is_refused_cleanly(run2: Path) -> None:
    data = (run2 / INDEX).read_bytes()
    for at in range(0, len(data), 61):
        for wrong in (data[:at], data[:at] + bytes((data[at] ^ 0x15,)) + data[at + 1 :]):
            (run2 / INDEX).write_bytes(wrong)
            try:
                read(run2)
            except CgptError:
                continue
    assert contents(run2).keys() == {INDEX, "__0_0.distcp", "__1_0.distcp"}


HF = "hf/sharded"


def test_safetensors_of_ranks_are_those_that_torch_merges(runs: Path, tmp_path: Path) -> None:
    expected = safetensors.torch.load_file(next((runs / "hf").glob("*.safetensors")))
    assert_same(read(runs / HF), expected)
    output = tmp_path / "model.safetensors"
    assert run("convert", runs / HF, "-o", output).code == 0
    assert_same(safetensors.torch.load_file(output), expected)
    assert run("verify", runs / "hf", output).code == 0
    with safetensors.safe_open(output, "pt") as file:
        assert "DCP_SHARDING_INFO" not in file.metadata()


def test_safetensors_of_one_rank_are_read_with_a_warning(runs: Path) -> None:
    file = min((runs / HF).glob("*.safetensors"))
    found = run("inspect", file, "--json").json["findings"]
    assert [finding["id"] for finding in found] == ["CGPT013"]


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([0, 1], "two chunks overlap: shard-00001"),
        ([9, 0], "elements; none has"),
        ([-1, 0], "-1 is not a non-negative integer"),
        ([0], "differ in type or number of dimensions"),
        (["0", 0], "the saved_offsets of 'columns' are not valid"),
        ([1 << 62, 0], "is too large"),
    ],
)
def test_safetensors_of_ranks_that_do_not_fit_are_named(
    starts: list[Any], message: str, runs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(runs / HF, folder)
    path = sorted(folder.iterdir())[1]
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    info = json.loads(metadata["DCP_SHARDING_INFO"])
    info["columns"]["saved_offsets"] = starts
    metadata["DCP_SHARDING_INFO"] = json.dumps(info)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)
    result = run("digest", folder)
    assert result.code == 3
    assert message in result.err


def test_a_missing_rank_of_safetensors_leaves_holes(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(runs / HF, folder)
    min(folder.iterdir()).unlink()
    result = run("inspect", folder)
    assert result.code == 3
    assert "elements; none has" in result.err
    output = tmp_path / "m.safetensors"
    assert run("convert", folder, "-o", output, "--salvage").code == 1
    assert set(safetensors.torch.load_file(output)) == {"same", "half"}


def test_a_checkpoint_is_read_from_a_url(runs: Path, tmp_path: Path) -> None:
    with nginx(tmp_path) as server:
        shutil.copytree(runs / "dcp-4", server.www / "run")
        inspected = run("inspect", "--json", server.url("run/.metadata")).json
        assert len(inspected["tensors"]) == 16
        assert run("digest", server.url("run/")).out == run("digest", runs / "dcp-4").out


@pytest.mark.parametrize("ranks", RANKS)
def test_files_of_ranks_are_put_together(runs: Path, ranks: int, tmp_path: Path) -> None:
    folder, file = runs / f"ranks-{ranks}", runs / f"ranks-{ranks}.pt"
    expected = torch.load(file)
    assert len(expected) == 15 + (0, 1, 2)[RANKS.index(ranks)]
    assert_same(read(folder), expected)
    assert run("digest", folder).out == run("digest", file).out
    output = tmp_path / "model.safetensors"
    assert run("convert", folder, "-o", output, "--verify").code == 0
    assert_same(safetensors.torch.load_file(output), expected)
    assert run("verify", folder, output).code == 0
    assert run("inspect", "--check", folder).code == 0
    with open_checkpoint(folder) as merged, open_checkpoint(file) as whole:
        assert list(merged) == list(whole)
        assert merged.within == whole.within
        assert merged.containers == whole.containers
        assert not merged.others


@pytest.fixture
def ranks2(runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(runs / "ranks-2", tmp_path / "ranks")
    return tmp_path / "ranks"


RANK = "model_world_size_2_rank_{}.pt".format


def test_a_file_of_one_rank_is_read_with_a_warning(ranks2: Path) -> None:
    found = run("inspect", "--json", ranks2 / RANK(0)).json["findings"]
    assert [finding["id"] for finding in found] == ["CGPT013"]


def test_a_missing_file_of_a_rank_is_named(ranks2: Path, runs: Path, tmp_path: Path) -> None:
    (ranks2 / RANK(0)).unlink()
    result = run("inspect", ranks2)
    assert result.code == 3
    assert f"1 of 2 files of ranks are missing: '{RANK(0)}'" in result.err
    output = tmp_path / "m.safetensors"
    assert run("convert", ranks2, "-o", output, "--salvage").code == 1
    left = safetensors.torch.load_file(output)
    expected = torch.load(runs / "ranks-2.pt")
    assert {"same", "half", "turned", "flags"} <= left.keys()
    assert left.keys().isdisjoint(("rows", "columns", "grid", "fsdp_8"))
    assert_same(left, {name: expected[name] for name in left})


def test_the_same_rank_twice_leaves_holes(ranks2: Path) -> None:
    shutil.copy(ranks2 / RANK(0), ranks2 / RANK(1))
    result = run("inspect", ranks2)
    assert result.code == 3
    assert "ranks[grid]" in result.err


def edited(path: Path, pattern: bytes, by: bytes) -> None:
    """Change the pickle in a file where the pattern fits."""
    entries = zips.entries_of(path.read_bytes())
    pickle = next(entry for name, entry in entries.items() if name.endswith("/data.pkl"))
    data, count = re.subn(pattern, by, pickle.raw(), flags=re.DOTALL)
    assert count
    changed = zips.Entry(pickle.name, data)
    path.write_bytes(
        zips.build([changed if entry is pickle else entry for entry in entries.values()])
    )


def test_a_part_that_is_not_where_its_placements_say_is_named(ranks2: Path) -> None:
    edited(ranks2 / RANK(1), rb"(_coordinate_on_dim(?:q.|r....))K\x01\x85", b"\\1K\0\x85")
    result = run("inspect", ranks2)
    assert result.code == 3
    assert "and its placements give [4, 5]" in result.err


def test_placements_that_are_not_known_are_named(ranks2: Path) -> None:
    edited(ranks2 / RANK(0), rb"placement_types\nShard\n", b"placement_types\nShart\n")
    result = run("digest", ranks2)
    assert result.code == 3
    assert "the placements in 'model_world_size_2_rank_0.pt' are not supported" in result.err


def test_several_sets_of_files_of_ranks(ranks2: Path) -> None:
    for rank in (0, 1):
        torch.save({"step": rank}, ranks2 / f"extra_state_world_size_2_rank_{rank}.pt")
    assert run("inspect", ranks2).code == 0  # the model is taken
    for rank in (0, 1):
        name = RANK(rank)
        (ranks2 / name).rename(ranks2 / name.replace("model", "critic"))
    result = run("inspect", ranks2)
    assert result.code == 2
    assert "'critic', 'extra_state'" in result.err

"""Checkpoints in several files: whole, with files or tensors missing, and one shard alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.cli.test_extract import assert_same
from tests.helpers import vendor
from tests.helpers.running import contents, run

FIRST, SECOND = (f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2))
INDEX = "pytorch_model.bin.index.json"


@pytest.fixture(scope="module")
def state() -> vendor.State:
    return vendor.state_dict(vendor.TINY, "hf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vendor.write(vendor.TINY, tmp_path / "model", "hf", shards=True)
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the index."""
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def refused(path: Path, *expected: str) -> None:
    """The path is refused as malformed by every command, naming all that is expected."""
    for words in (("inspect",), ("convert", "-o", path.parent / "never.npz")):
        result = run(words[0], path, *words[1:])
        assert result.code == 3
        assert result.out == ""
        for text in expected:
            assert text in result.err
    assert not (path.parent / "never.npz").exists()


def test_the_index_and_its_folder_are_the_whole_model(
    state: vendor.State, folder: Path, tmp_path: Path
) -> None:
    for number, path in enumerate((folder, folder / INDEX)):
        assert_same(path, state)
        out = tmp_path / f"{number}.safetensors"
        assert run("convert", path, "-o", out).code == 0
        found = safetensors.torch.load_file(out)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_sharded_model_sums_over_its_files(state: vendor.State, folder: Path) -> None:
    summary = run("inspect", folder, "--json").json
    assert [file["name"] for file in summary["files"]] == [FIRST, SECOND]
    assert summary["nbytes"] == sum(v.numel() * v.element_size() for v in state.values())
    assert {row["file"] for row in summary["tensors"]} == {FIRST, SECOND}
    assert "CGPT014" not in {found["id"] for found in summary["findings"]}
    assert run("inspect", folder, "--check").code == 0


def test_extraction_numbers_the_shards(state: vendor.State, folder: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    assert run("extract", folder, "-o", out).code == 0
    tops = {name.split("/")[0] for name in contents(out)}
    assert tops == {"1", "2", "mapping.json"}
    first = [name for name in contents(out) if name.startswith("1/")]
    assert sorted(first, key=lambda name: int(name[2:])) == [f"1/{i}" for i in range(len(first))]
    assert_same(out, state)
    assert run("extract", out, "-o", again).code == 0
    assert contents(again) == contents(out)


def test_part_of_a_sharded_model_keeps_its_shards_numbers(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("extract", folder, "-o", out, "--match", "ln_f.*").code == 0
    assert {name.split("/")[0] for name in contents(out)} == {"2", "mapping.json"}


def test_shards_of_safetensors_need_no_numbers(
    state: vendor.State, folder: Path, tmp_path: Path
) -> None:
    words = ("-o", tmp_path / "m.safetensors", "--max-shard-size", "200kB")
    assert run("convert", folder, *words).code == 0
    index = tmp_path / "m.safetensors.index.json"
    assert run("extract", index, "-o", tmp_path / "out").code == 0
    assert contents(tmp_path / "out").keys() == {*state, "mapping.json"}
    assert_same(tmp_path / "out", state)


def test_all_missing_shards_are_listed(folder: Path) -> None:
    (folder / FIRST).unlink()
    refused(folder, "1 of 2 shards missing", FIRST, "download")
    (folder / SECOND).unlink()
    refused(folder / INDEX, "2 of 2 shards missing", FIRST, SECOND)


def test_all_tensors_missing_from_the_shards_are_listed(folder: Path) -> None:
    edit(folder, lambda index: index["weight_map"].update(ghost=FIRST, phantom=SECOND))
    refused(folder, f"'ghost' is not in '{FIRST}'", f"'phantom' is not in '{SECOND}'")


def test_all_tensors_missing_from_the_index_are_listed(folder: Path) -> None:
    def forget(index: dict[str, Any]) -> None:
        del index["weight_map"]["wte.weight"]
        del index["weight_map"]["ln_f.bias"]

    edit(folder, forget)
    missing = "'wte.weight' in '{}' is not in the index", "'ln_f.bias' in '{}' is not in the index"
    refused(folder, missing[0].format(FIRST), missing[1].format(SECOND))


def test_a_tensor_in_another_shard_is_said_to_be_there(folder: Path) -> None:
    edit(folder, lambda index: index["weight_map"].update({"wte.weight": SECOND}))
    refused(folder, f"'wte.weight' is in '{FIRST}' and not in '{SECOND}'")


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    second = torch.load(folder / SECOND) | {"wte.weight": torch.zeros(1)}
    vendor.save(second, folder / SECOND)
    refused(folder, f"'wte.weight' is in '{SECOND}' and in '{FIRST}'")


@pytest.mark.parametrize("file", ["../secret.bin", "/etc/passwd", "a/b.bin", "", "..", 5, None])
def test_a_map_that_leads_outside_is_refused(folder: Path, file: object) -> None:
    (folder.parent / "secret.bin").write_bytes((folder / FIRST).read_bytes())
    edit(folder, lambda index: index["weight_map"].update({"wte.weight": file}))
    refused(folder, "names shards outside its folder")


NO_INDEX = {
    "nothing": "",
    "a list": "[]",
    "no map": "{}",
    "an empty map": '{"weight_map": {}}',
    "a list as map": '{"weight_map": []}',
    "not UTF-8": "\xff",
    "deep": "[" * 10**5,
    "a name twice": '{"weight_map": {"a": "x.bin", "a": "y.bin"}}',
}


@pytest.mark.parametrize("kind", NO_INDEX)
def test_what_is_no_index_is_refused(folder: Path, kind: str) -> None:
    (folder / INDEX).write_bytes(NO_INDEX[kind].encode("latin-1"))
    refused(folder, INDEX)


def test_a_size_that_does_not_fit_is_a_note(folder: Path) -> None:
    edit(folder, lambda index: index["metadata"].update(total_size=1))
    result = run("inspect", folder, "--json")
    assert result.code == 0
    note = next(found for found in result.json["findings"] if found["id"] == "CGPT014")
    assert note["detail"].startswith("1 bytes in the index")


def test_a_tied_weight_may_be_left_out_of_the_index(tmp_path: Path) -> None:
    weight = torch.randn(3, 2)
    shards = [{"wte.weight": weight, "head.weight": weight}, {"b": torch.ones(1)}]
    names = [vendor.save(s, tmp_path / f"m-{i}.bin").name for i, s in enumerate(shards)]
    index = {"weight_map": {"wte.weight": names[0], "b": names[1]}}
    (tmp_path / "m.index.json").write_text(json.dumps(index))
    assert_same(tmp_path / "m.index.json", {**shards[0], **shards[1]})


def test_one_shard_alone_is_read_with_a_warning(state: vendor.State, folder: Path) -> None:
    result = run("inspect", folder / SECOND, "--json")
    assert result.code == 0
    found = next(each for each in result.json["findings"] if "one shard" in each["title"])
    assert found["level"] == "warning"
    assert INDEX in found["detail"]
    assert 0 < len(result.json["tensors"]) < len(state)
    converted = run("convert", folder / SECOND, "-o", folder.parent / "half.safetensors")
    assert converted.code == 0
    assert "one shard of several" in converted.err


def test_a_folder_of_several_models_asks_which(tmp_path: Path) -> None:
    for name in ("a.pt", "b.safetensors"):
        safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / name)
    result = run("inspect", tmp_path)
    assert result.code == 2
    assert "'a.pt', 'b.safetensors'" in result.err


def test_an_array_beside_a_model_does_not_hide_it(tmp_path: Path) -> None:
    vendor.write(vendor.TINY, tmp_path)
    (tmp_path / "notes.npy").write_bytes(b"")
    assert len(run("inspect", tmp_path, "--json").json["tensors"]) == 33


def without_index(folder: Path) -> Path:
    (folder / INDEX).unlink()
    return folder


def test_shards_without_an_index_are_read_by_their_names(
    state: vendor.State, folder: Path, tmp_path: Path
) -> None:
    indexed = run("digest", folder).out
    result = run("inspect", without_index(folder), "--json")
    assert [finding["id"] for finding in result.json["findings"]] == ["CGPT033"]
    assert len(result.json["tensors"]) == len(state)
    assert run("digest", folder).out == indexed
    assert run("convert", folder, "-o", tmp_path / "m.safetensors").code == 0
    assert run("verify", folder, tmp_path / "m.safetensors").code == 0


def test_a_missing_shard_without_an_index_is_named(folder: Path, tmp_path: Path) -> None:
    first, second = (folder / name for name in (FIRST, SECOND))
    third = "pytorch_model-00003-of-00003.bin"
    first.rename(folder / FIRST.replace("of-00002", "of-00003"))
    second.rename(folder / SECOND.replace("of-00002", "of-00003"))
    result = run("inspect", without_index(folder))
    assert result.code == 3
    assert f"1 of 3 shards missing: '{third}'" in result.err
    output = tmp_path / "m.safetensors"
    result = run("convert", folder, "-o", output, "--salvage", "--json")
    assert result.code == 1
    assert [each["name"] for each in result.json["lost"]] == [third]


def test_a_tensor_in_two_shards_is_named(folder: Path) -> None:
    name = next(iter(torch.load(folder / FIRST)))
    torch.save(torch.load(folder / SECOND) | {name: torch.ones(1)}, folder / SECOND)
    refused(without_index(folder), f"contain the tensor '{name}': '{FIRST}', '{SECOND}'")


def test_safetensors_are_taken_before_torch_files(folder: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    for name in ("model.safetensors", "pytorch_model.bin"):
        value = {"w": torch.full((2,), float(len(name)))}
        if name.endswith(".bin"):
            torch.save(value, both / name)
        else:
            safetensors.torch.save_file(value, both / name)
    result = run("inspect", both, "--json")
    assert result.json["kind"] == "safetensors"
    (finding,) = result.json["findings"]
    assert (finding["id"], finding["detail"]) == ("CGPT032", "'pytorch_model.bin'")
    converted = run("convert", both, "-o", tmp_path / "m.npz")
    assert "other weight files in the folder, not read: 'pytorch_model.bin'" in converted.err

    shards = without_index(folder)
    for number in (1, 2):
        value = {f"w{number}": torch.ones(1)}
        safetensors.torch.save_file(value, shards / f"model-0000{number}-of-00002.safetensors")
    result = run("inspect", shards, "--json")
    assert [row["name"] for row in result.json["tensors"]] == ["w1", "w2"]
    assert {finding["id"] for finding in result.json["findings"]} == {"CGPT032", "CGPT033"}


def test_files_that_may_be_of_other_models_are_not_chosen_from(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "critic.bin")
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "actor.safetensors")
    assert run("inspect", tmp_path).code == 2

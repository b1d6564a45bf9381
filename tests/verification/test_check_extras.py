"""What equal tensors do not tell: code that a pickle names, other weight files, damage."""

import argparse
import hashlib
import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cgpt_convert.pickles.torch_calls.dangerous import is_dangerous_path
from cgpt_convert.scanning.allowlist import Allowlist
from tests.helpers import vendor
from tests.helpers.running import Result, run
from tests.targets.java_program.test_properties import source


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.fixture(scope="module")
def good(state, tmp_path_factory):
    """A model folder, and the lock of it beside."""
    folder = tmp_path_factory.mktemp("good") / "model"
    folder.mkdir()
    vendor.write_config(vendor.TINY, folder)
    vendor.save(state, folder / "pytorch_model.bin")
    assert run("lock", folder, "-o", folder.parent / "lock.json").code == 0
    return folder


def saved(folder: Path, state: vendor.State, extra: object) -> Path:
    """The same tensors, in a pickle that names something else."""
    torch.save({**state, "extra": extra}, folder / "other.bin")
    return folder / "other.bin"


def findings(result: Result) -> list[str]:
    """The ids of what failed, without a tensor."""
    return [c["finding"] for c in result.json["checks"] if c["outcome"] == "failed"]


CODE = {
    "CGPT015": (Evil(), f"{os.system.__module__}.system"),
    "CGPT008": (argparse.Namespace(lr=1), "argparse.Namespace"),
}


@pytest.mark.parametrize("rule", CODE)
def test_a_copy_of_a_file_with_code_is_equal_to_it(state, tmp_path, rule):
    value, name = CODE[rule]
    target = saved(tmp_path, state, value)
    copy = tmp_path / "copy.bin"
    copy.write_bytes(target.read_bytes())
    for other in (target, copy):
        result = run("verify", target, other)
        assert result.code == 0
        assert re.search(rf"note: (dangerous|foreign): the pickle references {name}", result.out)


@pytest.mark.parametrize("rule", CODE)
def test_equal_tensors_beside_code_are_not_verified(good, state, tmp_path, rule):
    value, name = CODE[rule]
    target = saved(tmp_path, state, value)
    assert run("scan", target, "--format", "json").json["checks"][0]["finding"] == rule
    words = ((target, "--lock", good.parent / "lock.json"), (good, target))
    for given in words:
        result = run("verify", *given, "--json")
        assert (result.code, findings(result)) == (1, [rule])
        assert name in run("verify", *given).out
        assert rule in run("verify", *given, "--format", "github").out
        allowed = run("verify", *given, "--allow", name, "--json")
        assert allowed.code == (0 if rule == "CGPT008" else 2)
        assert run("verify", *given, "--allow", "team.Other").code == 1


def test_a_claim_says_nothing_of_code_either(good, tmp_path):
    out = tmp_path / "out.bin"
    assert run("convert", good, "-o", out).code == 0
    assert run("verify", out).code == 0
    loaded = torch.load(out)
    loaded.metadata["by"] = argparse.Namespace()
    torch.save(loaded, out)
    result = run("verify", out, "--json")
    assert (result.code, findings(result)) == (1, ["CGPT008"])


def test_the_other_commands_say_it_and_go_on(good, state, tmp_path):
    target = saved(tmp_path, state, Evil())
    for words in (
        ("digest", target),
        ("convert", target, "-o", tmp_path / "out.safetensors"),
        ("extract", target, "-o", tmp_path / "out"),
        ("diff", good, target),
        ("lock", target, "-o", tmp_path / "lock.json"),
    ):
        result = run(*words)
        assert result.code == 0, result.err
        level = "warning" if words[0] == "lock" else "note"
        told = [line for line in result.err.splitlines() if line.startswith(f"{level}: ")]
        assert len(told) == 1
        assert CODE["CGPT015"][1] in told[0]
        assert "scan" in told[0]
    assert "system" not in (tmp_path / "lock.json").read_text()
    assert run("digest", good).err == ""


def test_names_are_judged_wherever_the_module_ends():
    rule = Allowlist(("team.models:Outer.Inner", "team.Config"))
    names = ["torch.FloatStorage", "team.models.Outer.Inner", "team.Config", "team.Other"]
    assert rule.others([*names, "__torch__.Net"]) == ["team.Other", "__torch__.Net"]
    assert rule.others(["__torch__.Net"], script=True) == []
    for name in ("os.system", "builtins.eval", "team.Config.__class__", "team.__init__.x", "x"):
        assert is_dangerous_path(name), name
    for name in ("__main__.Net", "team.Config", "argparse.Namespace", "pathlib._local.PosixPath"):
        assert not is_dangerous_path(name), name


def test_a_folder_is_verified_if_all_its_weights_are(good, state, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    vendor.save(state, folder / "pytorch_model.bin")
    (folder / "training_args.bin").write_bytes(b"no weights")
    lock = good.parent / "lock.json"
    assert run("verify", folder, "--lock", lock).code == 0
    saved(folder, state, 1)
    result = run("verify", folder, "--lock", lock, "--json")
    assert result.code == 1
    failed = [check for check in result.json["checks"] if check["outcome"] == "failed"]
    assert [check["detail"].partition(",")[0] for check in failed] == ["not verified: other.bin"]
    assert "verify each file separately" in failed[0]["detail"]
    assert run("verify", good, folder).code == 1
    assert run("verify", folder / "pytorch_model.bin", "--lock", lock).code == 0
    locked = run("lock", folder, "-o", tmp_path / "lock.json")
    assert (locked.code, "not locked: other.bin" in locked.err) == (0, True)


def test_shards_are_one_checkpoint(good, tmp_path):
    out = tmp_path / "shards"
    assert run("convert", good, "-o", out, "--to", "hf", "--max-shard-size", "100kB").code == 0
    assert len(list(out.glob("*.safetensors"))) > 2
    assert run("verify", out).code == 0
    save_file({"a": torch.ones(1)}, out / "more.safetensors")
    assert run("verify", out).code == 1


@pytest.mark.parametrize("words", [("--lock", "lock.json"), ("model",), ()])
def test_what_cannot_be_read_is_an_error_in_the_report(good, tmp_path, words):
    whole = (good / "pytorch_model.bin").read_bytes()
    target = tmp_path / "cut.bin"
    target.write_bytes(whole[: len(whole) // 2])
    given = [good.parent / word if not word.startswith("--") else word for word in words]
    given = [*given, target] if words == ("model",) else [target, *given]
    refused(("verify", *given), target)


def test_a_check_that_cannot_be_made_is_an_error_in_the_report(good, tmp_path):
    target = tmp_path / "cut.bin"
    target.write_bytes((good / "pytorch_model.bin").read_bytes()[:5000])
    refused(("inspect", target, "--check"), target)


def refused(words: tuple[object, ...], target: Path) -> None:
    """Each report of the command has one error, about `target`, and nothing else is printed."""
    results = {form: run(*words, "--format", form) for form in ("json", "junit", "sarif", "github")}
    assert {(result.code, result.err) for result in results.values()} == {(3, "")}
    (check,) = results["json"].json["checks"]
    assert (check["outcome"], check["file"]) == ("error", str(target))
    assert ET.fromstring(results["junit"].out).attrib["errors"] == "1"
    (told,) = results["sarif"].json["runs"]
    assert told["invocations"] == [{"executionSuccessful": False}]
    assert len(told["results"]) == 1
    assert results["github"].out.startswith("::error ")
    plain = run(*words)
    assert (plain.code, plain.out) == (3, "")
    assert str(target) in plain.err


def test_bad_usage_is_no_report(tmp_path):
    result = run("verify", tmp_path / "none.bin", "--format", "junit")
    assert (result.code, result.out) == (2, "")


@pytest.mark.parametrize("part", ["contiguous", "transposed"])
def test_damage_is_no_difference(good, tmp_path, part):
    """torch writes the checksums; a changed byte makes it another file, not other weights."""
    name = {"contiguous": "ln_f.bias", "transposed": "h.0.mlp.c_fc.weight"}[part]
    name = f"transformer.{name}"
    (row,) = run("inspect", good, "--json", "--match", name).json["tensors"]
    assert (row["strides"] is None) == (part == "contiguous")
    data = bytearray((good / "pytorch_model.bin").read_bytes())
    data[row["offset"] + 5] ^= 1
    damaged = tmp_path / "damaged.bin"
    damaged.write_bytes(data)
    for words in (
        ("diff", good, damaged),
        ("diff", damaged, good),
        ("verify", good, damaged),
        ("verify", damaged, good),
        ("digest", damaged),
    ):
        result = run(*words)
        assert (result.code, result.out) == (3, ""), words
        assert f"tensor '{name}' is damaged" in result.err


def test_computed_buffers_that_a_lock_lacks_pass(good, state, tmp_path):
    assert run("convert", good, "-o", tmp_path / "hf", "--to", "hf").code == 0
    assert run("lock", tmp_path / "hf", "-o", tmp_path / "lock.json").code == 0
    for words in ((good, "--lock", tmp_path / "lock.json"), (tmp_path / "hf", good)):
        result = run("verify", *words, "--json")
        assert result.code == 0
        told = {c["tensor"] for c in result.json["checks"] if c["name"] == "computed"}
        assert told == {name for name in state if name.endswith((".attn.bias", ".masked_bias"))}
        assert "computed" in run("verify", *words).out
    saved(tmp_path, state, torch.ones(2))  # any other tensor is one too many
    assert run("verify", tmp_path / "other.bin", "--lock", tmp_path / "lock.json").code == 1


def test_what_is_no_lock_is_said_to_be_none(good, tmp_path):
    (tmp_path / "float.json").write_text('{"dropout": 0.0}')
    (tmp_path / "text.json").write_text("no JSON")
    for path in (good / "config.json", tmp_path / "float.json", tmp_path / "text.json"):
        result = run("verify", good, "--lock", path)
        assert result.code == 3
        assert "not a lock in the format" in result.err
        assert "cgpt-convert lock SOURCE -o FILE" in result.err


def test_an_extracted_folder_is_verified_by_its_mapping(good, tmp_path):
    out = tmp_path / "parameters"
    assert run("extract", good, "-o", out).code == 0
    result = run("verify", out, "--json")
    assert result.code == 0
    tensors = {check["tensor"] for check in result.json["checks"]}
    mapping = json.loads((out / "mapping.json").read_text())["tensors"]
    assert tensors == mapping.keys()
    victim = "transformer.ln_f.bias"
    file = out / mapping[victim]["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == mapping[victim]["sha256"]
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    result = run("verify", out, "--json")
    failed = [check for check in result.json["checks"] if check["outcome"] == "failed"]
    assert (result.code, [check["tensor"] for check in failed]) == (1, [victim])
    assert mapping[victim]["sha256"] in failed[0]["detail"]


def test_copies_for_other_programs_are_verified_too(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    source(folder, vendor.state_dict(vendor.TINY, "hf"))
    assert run("extract", folder, "-o", out, "--properties").code == 0
    copies = json.loads((out / "parameters/mapping.json").read_text())["copies"]
    assert run("verify", out / "parameters").code == 0
    (out / "parameters" / copies[0]["file"]).write_bytes(b"")
    result = run("verify", out / "parameters")
    assert result.code == 1
    assert f"file {copies[0]['file']}: sha256" in result.out


def test_a_mapping_without_digests_claims_nothing(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "m.safetensors")
    out = tmp_path / "out"
    assert run("extract", tmp_path / "m.safetensors", "-o", out).code == 0
    mapping = json.loads((out / "mapping.json").read_text())
    for names, code in ((["a"], 1), (["b"], 3)):
        for name in names:
            del mapping["tensors"][name]["sha256"]
        (out / "mapping.json").write_text(json.dumps(mapping))
        assert run("verify", out).code == code
    mapping["tensors"]["a"]["sha256"] = "0"
    (out / "mapping.json").write_text(json.dumps(mapping))
    assert run("verify", out).code == 3


def test_input_without_what_is_asked_for_is_unsupported(tmp_path):
    torch.save({"lr": 1}, tmp_path / "none.bin")
    torch.save({"a": torch.ones(2)}, tmp_path / "tiny.pth")
    (tmp_path / "empty").mkdir()
    for words in (
        ("verify", tmp_path / "tiny.pth"),
        ("convert", tmp_path / "none.bin", "-o", tmp_path / "out.npz"),
        ("digest", tmp_path / "none.bin"),
        ("extract", tmp_path / "none.bin", "-o", tmp_path / "out"),
        ("generate", tmp_path / "tiny.pth", "--ids", "1"),
        ("inspect", tmp_path / "empty"),
        ("convert", tmp_path / "tiny.pth", "-o", tmp_path / "out.gguf", "--no-vocab"),
        ("convert", tmp_path / "tiny.pth", "-o", tmp_path / "out", "--to", "hf"),
        ("extract", tmp_path / "tiny.pth", "-o", tmp_path / "out", "--properties"),
    ):
        result = run(*words)
        assert (result.code, result.out) == (3, ""), words


def test_a_file_that_is_not_there_is_bad_usage(good, tmp_path):
    none = tmp_path / "none"
    for words in (
        ("inspect", none),
        ("verify", good, "--lock", none),
        ("verify", good, none),
        ("diff", good, none),
        ("generate", good, "--request", none),
        ("eval", good, "--text", none),
    ):
        assert run(*words).code == 2, words


def test_what_else_a_loader_may_read_is_listed(good, state, tmp_path):
    folder = tmp_path / "model"
    (folder / "2_Dense").mkdir(parents=True)
    vendor.save(state, folder / "pytorch_model.bin")
    save_file({"w": torch.ones(2)}, folder / "2_Dense" / "model.safetensors")
    told = os.path.join("2_Dense", "model.safetensors")
    result = run("verify", good, folder, "--json")
    (note,) = [c for c in result.json["checks"] if c["outcome"] == "note"]
    assert result.code == 0
    assert note["detail"] == f"not compared: weight files in subfolders: {told}"
    assert f"not included: weight files in subfolders: {told}" in run("digest", folder).err
    assert f"not compared: weight files in subfolders: {told}" in run("diff", good, folder).err
    locked = run("lock", folder, "-o", tmp_path / "lock.json")
    assert f"not locked: {told}" in locked.err
    saved(folder, state, 1)  # other.bin, beside it
    result = run("verify", folder, good)
    assert (result.code, "not compared: other.bin" in result.out) == (0, True)
    assert "not included: other.bin" in run("digest", folder).err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_lone_shard_and_code_are_listed(tmp_path):
    tensors = {f"w{i}": torch.ones(9) * i for i in range(4)}
    save_file(tensors, tmp_path / "a.safetensors")
    shards = tmp_path / "s.safetensors"
    assert (
        run("convert", tmp_path / "a.safetensors", "-o", shards, "--max-shard-size", "80").code == 0
    )
    one = tmp_path / "s-00001-of-00002.safetensors"
    result = run("verify", one, one)
    assert (result.code, "not compared: the other shards" in result.out) == (0, True)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "m.pt")
    result = run("verify", tmp_path / "m.pt", tmp_path / "m.pt")
    assert (result.code, "records of TorchScript code" in result.out) == (0, True)

"""What is compared: all tensors, or a part that the result names, with what is outside of it."""

import json
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers import vendor
from tests.helpers.running import Result, run
from tests.verification.test_digests import model, whole

WEIGHTS = {"a.weight": torch.ones(2, 2), "b.bias": torch.zeros(2)}
HEAD = {"fc.weight": torch.ones(2, 2)}


def saved(folder, name, value):
    torch.save(value, folder / name)
    return folder / name


def flat(value, before=""):
    """Every tensor of nested dicts under its full name."""
    found: dict[str, torch.Tensor] = {}
    for key, each in value.items():
        name = f"{before}{key}"
        found |= {name: each} if isinstance(each, torch.Tensor) else flat(each, f"{name}.")
    return found


def notes(result: Result) -> list[str]:
    return [c["detail"] for c in result.json["checks"] if c["name"] == "scope"]


@pytest.fixture
def reviewed(tmp_path):
    """A checkpoint of two parts, and its lock."""
    path = saved(tmp_path, "reviewed.pt", {"model": WEIGHTS, "head": HEAD})
    assert run("lock", path, "-o", tmp_path / "lock.json").code == 0
    return path


OTHERS = {
    "changed": ({"model": WEIGHTS, "head": {"fc.weight": torch.zeros(2, 2)}}, "head.fc.weight"),
    "removed": ({"model": WEIGHTS}, "head.fc.weight"),
    "added": ({"model": WEIGHTS, "head": HEAD, "ema": WEIGHTS}, "ema.a.weight"),
    "added beside": ({"model": WEIGHTS, "head": HEAD, "mean": torch.ones(1)}, "mean"),
    "moved": ({"model": WEIGHTS, "tail": HEAD}, "head.fc.weight"),
}


@pytest.mark.parametrize("change", OTHERS)
def test_what_is_outside_of_the_usual_root_counts(reviewed, tmp_path, change):
    content, name = OTHERS[change]
    other = saved(tmp_path, "other.pt", content)
    for words in (("verify", reviewed, other), ("verify", other, "--lock", tmp_path / "lock.json")):
        result = run(*words, "--json")
        failed = {c["tensor"] for c in result.json["checks"] if c["outcome"] == "failed"}
        assert (result.code, name in failed) == (1, True), words
        assert result.json["scope"]["files"][0]["not_compared"] == []
    result = run("diff", reviewed, other, "--json")
    states = {row["before"] or row["after"]: row["state"] for row in result.json["tensors"]}
    assert states[name] == ("renamed" if change == "moved" else change.partition(" ")[0])
    assert result.json["equal"] == (result.code == 0) == (change == "moved")
    assert run("digest", reviewed).out.splitlines()[0] != run("digest", other).out.splitlines()[0]


@pytest.mark.parametrize("root", [None, ".", "model", "head", "model.a"])
def test_a_file_is_equal_to_itself(reviewed, tmp_path, root):
    words = ["--root", root] if root else []
    counts = {None: 3, ".": 3, "model": 2, "head": 1, "model.a": 1}
    for each in (
        ("verify", reviewed, reviewed),
        ("verify", reviewed, "--lock", tmp_path / "lock.json"),
    ):
        result = run(*each, *words, "--json")
        assert result.code == 0, result.out
        for file in result.json["scope"]["files"]:
            assert (file["compared"], file["tensors"]) == (counts[root], 3)
            assert len(file["not_compared"]) == 3 - counts[root]
    assert run("diff", reviewed, reviewed, *words).code == 0
    lock = tmp_path / "part.json"
    assert run("lock", reviewed, "-o", lock, *words).code == 0
    assert run("verify", reviewed, "--lock", lock).code == 0


def test_a_name_that_is_in_and_outside_of_the_root(tmp_path):
    one = {"model": {"w": torch.ones(1)}, "w": torch.zeros(1)}
    path = saved(tmp_path, "m.pt", one)
    assert run("verify", path, path, "--root", "model").code == 0
    flat_one = saved(tmp_path, "flat.pt", flat(one))
    assert run("verify", flat_one, flat_one, "--root", "model").code == 0
    other = saved(tmp_path, "other.pt", {"model.w": torch.ones(1), "w": torch.ones(1)})
    assert run("verify", flat_one, other).code == 1
    result = run("verify", path, path, "--root", "model")
    assert "compared 1 of 2 tensors, under 'model'; not compared: w" in result.out


def test_a_narrower_scope_is_named_and_counted(reviewed, tmp_path):
    other = saved(tmp_path, "other.pt", OTHERS["changed"][0])
    result = run("verify", reviewed, other, "--root", "model", "--json")
    told = "compared 2 of 3 tensors, under 'model'; not compared: head.fc.weight"
    assert (result.code, notes(result)) == (0, [told, told])
    assert result.json["scope"] == {
        "root": "model",
        "match": [],
        "exclude": [],
        "by": "option",
        "files": [
            {
                "file": str(path),
                "root": "model",
                "compared": 2,
                "tensors": 3,
                "not_compared": ["head.fc.weight"],
            }
            for path in (reviewed, other)
        ],
    }
    shown = run("verify", reviewed, other, "--root", "model").out
    assert shown.count(told) == 2
    assert told in run("diff", reviewed, other, "--root", "model").out
    result = run("verify", reviewed, other, "--match", "model.*", "--exclude", "*.bias", "--json")
    assert result.code == 0
    told = "compared 1 of 3 tensors, matching 'model.*', not matching '*.bias'; "
    assert notes(result) == [f"{told}not compared: model.b.bias, head.fc.weight"] * 2
    for form in ("junit", "sarif", "github"):
        shown = run("verify", reviewed, other, "--root", "model", "--format", form).out
        assert "not compared: head.fc.weight" in shown or form == "github"
    assert run("verify", reviewed, other, "--match", "none").code == 2


@pytest.mark.parametrize("option", ["--match", "--exclude"])
def test_a_part_of_a_conversion_is_compared_without_the_digest_of_all(tmp_path, option):
    source = saved(tmp_path, "source.pt", WEIGHTS)
    target = tmp_path / "target.safetensors"
    assert run("convert", source, "-o", target).code == 0
    result = run("verify", source, target, option, "a.*", "--json")
    (claim,) = [c for c in result.json["checks"] if c["name"] == "claim"]
    assert (result.code, claim["outcome"]) == (0, "note")
    assert "not compared" in claim["detail"]
    assert (
        run("verify", source, target, "--match", "*", "--json").json["outcomes"].get("note", 0) == 0
    )
    data = {**load_file(target), "a.weight": torch.full((2, 2), 2.0)}
    with safe_open(target, "pt") as file:
        save_file(data, target, file.metadata())
    expected = {"--match": 1, "--exclude": 0}
    assert run("verify", source, target, option, "a.*").code == expected[option]


@pytest.mark.parametrize("name", ["m.safetensors", "m.npz", "m.bin"])
def test_what_was_converted_is_compared_under_the_root_it_was_made_from(reviewed, tmp_path, name):
    out = tmp_path / name
    assert run("convert", reviewed, "-o", out, "--verify").code == 0
    result = run("verify", reviewed, out, "--json")
    told = (
        "compared 2 of 3 tensors, under 'model' (the root in the provenance metadata); "
        "not compared: head.fc.weight"
    )
    assert (result.code, notes(result)) == (0, [told])
    assert result.json["scope"]["by"] == "provenance"
    result = run("verify", out, "--lock", tmp_path / "lock.json", "--json")
    assert (result.code, notes(result)) == (0, [told])
    assert run("verify", out, out).code == run("verify", out).code == 0
    other = saved(tmp_path, "flat.pt", WEIGHTS)
    assert run("verify", other, out).code == 0
    tampered = saved(tmp_path, "t.pt", {"model": dict(WEIGHTS) | {"b.bias": torch.ones(2)}})
    assert run("verify", tampered, out).code == 1


def test_without_provenance_a_hint_names_the_root(reviewed, tmp_path):
    out = tmp_path / "m.safetensors"
    save_file(WEIGHTS, out)
    result = run("verify", reviewed, out)
    assert result.code == 1
    assert "use --root model to compare only these" in result.out
    result = run("verify", reviewed, out, "--root", "model")
    assert (result.code, "not compared: head.fc.weight" in result.out) == (0, True)
    result = run("verify", out, "--lock", tmp_path / "lock.json")
    assert (result.code, "use --root model" in result.out) == (1, True)
    assert run("verify", out, "--lock", tmp_path / "lock.json", "--root", "model").code == 0


def test_a_training_checkpoint_of_a_known_model(state, tmp_path):
    """Under other names, without masks, and cast: as well as the weights alone."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}}
    path = saved(tmp_path, "last.ckpt", {"state_dict": state, "optimizer": optimizer})
    vendor.write_config(vendor.TINY, tmp_path)
    assert run("lock", path, "-o", tmp_path / "lock.json").code == 0
    for name, *more in (("m.gguf", "--no-vocab"), ("hf", "--to", "hf"), ("m.safetensors",)):
        assert run("convert", path, "-o", tmp_path / name, *more).code == 0
        result = run("verify", path, tmp_path / name)
        assert result.code == 0, result.out
        assert "not compared: optimizer.state.0.exp_avg" in result.out
        result = run("verify", tmp_path / name, "--lock", tmp_path / "lock.json")
        assert result.code == 0, result.out
    every = flat({"state_dict": state, "optimizer": {"state": {"0": optimizer["state"][0]}}})
    lines = run("digest", path).out.splitlines()
    count = f"{len(state)} of {len(state) + 1} tensors, under 'state_dict'"
    assert lines == [whole(every), f"{whole(state)}  {count}", f"{model(state)}  model gpt2"]
    told = run("digest", path, "--json").json
    assert (told["digest"], told["model"]) == (whole(every), model(state))
    assert told["weights"] == {
        "root": "state_dict",
        "digest": whole(state),
        "tensors": len(state),
        "of": len(state) + 1,
    }
    locked = json.loads((tmp_path / "lock.json").read_text())
    assert locked["weights"] == {
        "root": "state_dict",
        "digest": whole(state),
        "tensors": len(state),
        "model": {"architecture": "gpt2", "digest": model(state)},
    }
    assert (locked["digest"], locked["model"]) == (whole(every), None)
    edited = locked | {"weights": locked["weights"] | {"digest": whole(every)}}
    (tmp_path / "edited.json").write_text(json.dumps(edited))
    result = run("verify", path, "--lock", tmp_path / "edited.json")
    assert (result.code, "the lock was edited" in result.err) == (3, True)
    del locked["weights"]  # as earlier versions wrote it
    (tmp_path / "older.json").write_text(json.dumps(locked))
    assert run("verify", path, "--lock", tmp_path / "older.json").code == 0
    for plain in ((path, "--root", "state_dict"), (tmp_path / "m.safetensors",)):
        assert run("lock", *plain, "-o", tmp_path / "plain.json", "--overwrite").code == 0
        assert "weights" not in json.loads((tmp_path / "plain.json").read_text())


def test_a_lock_that_does_not_say_its_scope_is_of_the_usual_root(tmp_path, reviewed):
    """As it was written before locks had one."""
    lock = tmp_path / "part.json"
    assert run("lock", reviewed, "-o", lock, "--root", "model").code == 0
    told = json.loads(lock.read_text())
    assert told["scope"] == {"root": "model", "match": [], "exclude": []}
    assert told["not_locked"] == ["head.fc.weight"]
    del told["scope"], told["not_locked"]
    lock.write_text(json.dumps(told))
    result = run("verify", reviewed, "--lock", lock)
    assert (result.code, "not compared: head.fc.weight" in result.out) == (0, True)
    changed = saved(tmp_path, "c.pt", {"model": dict(WEIGHTS) | {"b.bias": torch.ones(2)}})
    assert run("verify", changed, "--lock", lock).code == 1


def test_a_lock_of_a_choice_names_it(reviewed, tmp_path):
    lock = tmp_path / "part.json"
    result = run("lock", reviewed, "-o", lock, "--exclude", "head.*")
    assert "locked 2 of 3 tensors, not matching 'head.*'; not locked: head.fc.weight" in result.out
    other = saved(tmp_path, "other.pt", OTHERS["changed"][0])
    result = run("verify", other, "--lock", lock)
    assert (result.code, result.out.count("not compared: head.fc.weight")) == (0, 2)
    added = saved(tmp_path, "added.pt", {"model": WEIGHTS, "tail": HEAD})
    assert run("verify", added, "--lock", lock).code == 1


# -- tensors that are not one dense view


def odd(change: str = "") -> dict[str, object]:
    values = torch.tensor([1.0, 3.0 if change == "values" else 2.0])
    index = torch.tensor([[0, 1], [0, 2 if change == "indices" else 1]])
    scales = torch.tensor([0.1, 0.3 if change == "scales" else 0.2])
    scale = 0.25 if change == "scale" else 0.5
    warnings.simplefilter("ignore")  # torch's quantized types are deprecated
    return {
        "w": torch.ones(2),
        "sparse": torch.sparse_coo_tensor(index, values, (3, 4 if change == "size" else 3)),
        "channels": torch.quantize_per_channel(
            torch.ones(2, 3), scales, torch.zeros(2), 0, torch.qint8
        ),
        "quantized": torch.quantize_per_tensor(torch.ones(2) * scale, scale, 0, torch.qint8),
        "meta": torch.empty(2, device="meta"),
    }


@pytest.mark.parametrize("change", ["values", "indices", "size", "scales", "scale"])
def test_tensors_that_are_not_dense_are_compared(tmp_path, change):
    one, other = saved(tmp_path, "a.pt", odd()), saved(tmp_path, "b.pt", odd(change))
    lock = tmp_path / "lock.json"
    assert run("lock", one, "-o", lock).code == 0
    for words in (("verify", one, one), ("verify", one, "--lock", lock)):
        result = run(*words)
        assert result.code == 0, result.out
        assert "meta: not compared: meta, its values are" in result.out
    assert run("diff", one, one).code == 0
    assert "1 not compared" in run("diff", one, one).out
    name = {"scales": "channels", "scale": "quantized"}.get(change, "sparse")
    for words in (("verify", one, other), ("verify", other, "--lock", lock)):
        result = run(*words, "--json")
        failed = {c["tensor"] for c in result.json["checks"] if c["outcome"] == "failed"}
        assert (result.code, failed) == (1, {name}), words
    assert run("diff", one, other).code == 1
    assert run("digest", one).out != run("digest", other).out


def test_a_tensor_that_became_dense_is_another(tmp_path):
    one = saved(tmp_path, "a.pt", odd())
    other = saved(tmp_path, "b.pt", odd() | {"sparse": torch.ones(3, 3)})
    for words in (("verify", one, other), ("verify", other, one)):
        result = run(*words, "--json")
        failed = [c["tensor"] for c in result.json["checks"] if c["outcome"] == "failed"]
        assert (result.code, failed) == (1, ["sparse"])


def test_what_is_left_out_of_a_conversion_is_listed(tmp_path):
    one, out = saved(tmp_path, "a.pt", odd()), tmp_path / "m.safetensors"
    globs = [
        word for name in ("sparse", "channels", "quantized", "meta") for word in ("--exclude", name)
    ]
    assert run("convert", one, "-o", out, *globs).code == 0
    assert load_file(out).keys() == {"w"}
    assert run("verify", one, out).code == 1
    result = run("verify", one, out, *globs)
    assert result.code == 0
    assert "not compared: w" not in result.out
    assert "compared 1 of 5 tensors" in result.out


def test_a_name_of_two_values_is_not_compared(tmp_path):
    path = saved(tmp_path, "m.pt", {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}, "c": HEAD})
    assert run("verify", path, path).code == run("diff", path, path).code == 0
    shown = " ".join(run("verify", path, path).out.split())
    reason = "two values have this name"
    assert f"passed: a.b: {reason}; the files are identical" in shown
    ends = "1 identity; 1 not readable (identical files)"
    assert shown.endswith(f": 2 checks passed: {ends}")
    other = {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}, "c": HEAD}
    other = saved(tmp_path, "o.pt", other)
    result = run("verify", path, other)
    assert result.code == run("diff", path, other).code == 3
    assert "a.b: not compared: two values have this name" in result.out
    assert run("lock", path, "-o", tmp_path / "lock.json").code == 3
    assert run("digest", path).code == 3
    result = run("verify", path, path, "--exclude", "a.b")
    assert (result.code, "not compared: a.b" in result.out) == (0, True)


def test_a_lone_tensor_is_counted_by_its_kind(tmp_path):
    """It has no name."""
    one = saved(tmp_path, "one.pt", HEAD)
    out = tmp_path / "one.safetensors"
    assert run("convert", one, "-o", out, "--dtype", "float16").code == 0
    assert run("verify", one, one).out.endswith(": 1 check passed: 1 identity\n")
    assert run("verify", one, out).out.endswith(": 2 checks passed: 1 cast float16; 1 provenance\n")


def test_values_that_were_not_saved(tmp_path):
    with torch.serialization.skip_data():
        torch.save({"w": torch.ones(4), "v": torch.ones(2)}, tmp_path / "a.pt")
    result = run("verify", tmp_path / "a.pt", tmp_path / "a.pt")
    assert (result.code, "not compared" in result.out) == (0, False)
    with torch.serialization.skip_data():
        torch.save({"w": torch.ones(4), "v": torch.ones(2), "n": 1}, tmp_path / "c.pt")
    result = run("verify", tmp_path / "a.pt", tmp_path / "c.pt")
    assert result.code == 3
    assert "w: not compared: its values were not saved" in result.out
    other = saved(tmp_path, "b.pt", {"w": torch.ones(4), "v": torch.ones(2)})
    assert run("verify", tmp_path / "a.pt", other).code == 1
    assert run("verify", other, tmp_path / "a.pt").code == 1


# -- which tensor is which


@pytest.mark.parametrize("prefix", ["module.", "model.net.", "_orig_mod."])
def test_equal_values_are_paired_by_name(tmp_path, prefix):
    state = {f"{i}.{n}": torch.zeros(3) for i in range(3) for n in ("bias", "running_mean")}
    state |= {f"{i}.weight": torch.full((2, 2), float(i)) for i in range(3)}
    one = saved(tmp_path, "a.pt", state)
    other = saved(tmp_path, "b.pt", {prefix + name: t for name, t in state.items()})
    result = run("diff", one, other, "--json")
    pairs = {row["before"]: row["after"] for row in result.json["tensors"]}
    assert pairs == {name: prefix + name for name in state}
    assert {row["state"] for row in result.json["tensors"]} == {"renamed"}
    checks = run("verify", one, other, "--json").json["checks"]
    assert {c["name"] for c in checks} == {"renamed"}
    assert all(prefix + c["tensor"] in c["detail"] for c in checks)


def test_equal_values_without_a_clear_pair_are_not_called_renamed(tmp_path):
    one = {"x.bias": torch.zeros(2), "y.bias": torch.zeros(2), "same": torch.zeros(2)}
    other = {"p.bias": torch.zeros(2), "q.bias": torch.zeros(2), "same": torch.zeros(2)}
    result = run("diff", saved(tmp_path, "a.pt", one), saved(tmp_path, "b.pt", other), "--json")
    states = {row["before"] or row["after"]: row["state"] for row in result.json["tensors"]}
    gone, new = (
        dict.fromkeys(["x.bias", "y.bias"], "removed"),
        dict.fromkeys(["p.bias", "q.bias"], "added"),
    )
    assert states == gone | new | {"same": "equal"}


CONVERTED = {
    "cast": ("m.safetensors", "--dtype", "float16"),
    "gguf": ("m.gguf", "--no-vocab"),
    "quantized": ("m.gguf", "--no-vocab", "--dtype", "q8_0"),
    "hf": ("hf", "--to", "hf"),
    "root": ("m.npz",),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_converted_file_is_equal_to_itself(state, tmp_path, kind):
    """What its provenance metadata names is another file."""
    name, *more = CONVERTED[kind]
    vendor.write_config(vendor.TINY, tmp_path)
    path = saved(tmp_path, "last.ckpt", {"state_dict": state, "epoch": 3, "ema": HEAD})
    assert run("convert", path, "-o", tmp_path / name, *more).code == 0
    lock = tmp_path / "lock.json"
    assert run("lock", tmp_path / name, "-o", lock).code == 0
    for words in (("verify", tmp_path / name), ("diff", tmp_path / name)):
        result = run(*words, tmp_path / name)
        assert result.code == 0, result.out
    result = run("verify", tmp_path / name, "--lock", lock)
    assert result.code == 0, result.out


def test_a_claim_of_what_was_done_is_still_compared_with_the_source(tmp_path):
    path, out = saved(tmp_path, "m.pt", WEIGHTS), tmp_path / "m.safetensors"
    assert run("convert", path, "-o", out).code == 0
    other = saved(tmp_path, "o.pt", dict(WEIGHTS) | {"c": torch.ones(1)})
    assert run("verify", other, out, "--exclude", "c").code == 0
    result = run("verify", other, out)
    assert result.code == 1
    assert f"but {other} has sha256:" in " ".join(result.out.split())

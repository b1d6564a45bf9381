"""Converted weights against source, lock and their own claim: what is the same, what is not."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cgpt_convert import open_checkpoint
from tests.helpers import vendor
from tests.helpers.gguf_library import from_gguf
from tests.helpers.running import run
from tests.verification.test_digests import model, whole

HEAD, TABLE = "lm_head.weight", "transformer.wte.weight"
SQUARE = "transformer.h.0.attn.c_proj.weight"
LAST = "transformer.ln_f.bias"


def failed(result):
    """Tensor -> what is wrong with it."""
    assert result.code == 1, result.out + result.err
    told = result.json
    assert told["ok"] is False
    return {c["tensor"]: c["detail"] for c in told["checks"] if c["outcome"] != "passed"}


def passed(result):
    assert result.code == 0, result.out + result.err
    assert result.json["ok"] is True
    assert {check["outcome"] for check in result.json["checks"]} == {"passed"}
    return {c["tensor"]: c["detail"] for c in result.json["checks"] if c["tensor"]}


TARGETS = {
    "safetensors": ("out.safetensors",),
    "half": ("out.safetensors", "--dtype", "float16"),
    "brain": ("out.npz", "--dtype", "bfloat16"),
    "torch": ("out.bin",),
    "npy": ("out", "--to", "npy"),
    "parameters": ("out", "--to", "parameters"),
    "shards": ("out.safetensors", "--max-shard-size", "100kB"),
    "torch shards": ("out.bin", "--max-shard-size", "100kB"),
    "copies": ("out.safetensors", "--tied", "copy"),
    "hf": ("out", "--to", "hf"),
    "hf shards": ("out", "--to", "hf", "--max-shard-size", "100kB", "--dtype", "float16"),
    "gguf": ("out.gguf", "--no-vocab"),
    "gguf half": ("out.gguf", "--no-vocab", "--dtype", "float16"),
    "q8_0": ("out.gguf", "--no-vocab", "--dtype", "q8_0"),
    "q4_1": ("out.gguf", "--no-vocab", "--dtype", "q4_1"),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_what_was_converted_is_verified_by_itself_and_with_its_source(source, tmp_path, kind):
    name, *rest = TARGETS[kind]
    out = tmp_path / name
    made = run("convert", source, "-o", out, *rest, "--verify")
    assert made.code == 0, made.err
    assert "read back and compared" in made.out
    if "shards" in kind and kind != "hf shards":
        out = tmp_path / f"{name}.index.json"
    alone = passed(run("verify", out, "--json"))
    both = passed(run("verify", source, out, "--json"))
    name = "blk.0.attn_output.weight" if name.endswith(".gguf") else SQUARE
    assert both[name].startswith(alone[name])
    assert ("transpose" in alone[name]) == ("rename" in alone[name]) == (name != SQUARE)
    if "--dtype" in rest:
        assert rest[rest.index("--dtype") + 1] in alone[name]
    elif name == SQUARE:
        assert alone[name] == "identity"


def test_what_other_libraries_wrote(source, state, tmp_path):
    """Verify needs no claim: safetensors' own writer, torch's own casts."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        cast = {
            name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous().clone()
            for name, tensor in state.items()
        }
        save_file(cast, tmp_path / "out.safetensors")
        told = passed(run("verify", source, tmp_path / "out.safetensors", "--json"))
        word = str(dtype).removeprefix("torch.")
        assert told[SQUARE] == ("identity" if dtype == torch.float32 else f"cast {word}")
    assert run("verify", tmp_path / "out.safetensors").code == 3


def test_the_claim_is_what_others_compute(source, state, tmp_path):
    run("convert", source, "-o", tmp_path / "out.safetensors", "--tied", "copy")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        told = file.metadata()
    assert told["cgpt_convert.source"] == whole(state)
    assert told["cgpt_convert.source_model"] == f"gpt2 {model(state)}"
    rows = json.loads(told["cgpt_convert.tensors"])
    data = b"float32 64x64\n" + state[SQUARE].contiguous().numpy().tobytes()
    assert rows[SQUARE] == {"sha256": hashlib.sha256(data).hexdigest()}
    assert rows.keys() == state.keys()


def test_the_claim_of_a_cast_names_the_source_uncast(source, state, tmp_path):
    run("convert", source, "-o", tmp_path / "out.gguf", "--no-vocab", "--dtype", "float16")
    told = open_checkpoint(tmp_path / "out.gguf").metadata
    assert told["cgpt_convert.source_model"] == f"gpt2 {model(state)}"
    assert "cgpt_convert.source" not in told
    row = json.loads(told["cgpt_convert.tensors"])["blk.0.attn_output.weight"]
    data = b"float16 64x64\n" + state[SQUARE].t().contiguous().half().numpy().tobytes()
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    assert (row["from"], row["steps"]) == (SQUARE, ["transpose", "cast float16"])
    dropped = json.loads(told["cgpt_convert.dropped"])
    assert dropped == sorted(n for n in state if n.endswith((".attn.bias", "masked_bias")))


def test_no_proof_is_what_the_library_writes(source, state, tmp_path):
    chosen = {name: t.contiguous().clone() for name, t in state.items() if name != HEAD}
    save_file(chosen, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    out = tmp_path / "ours.safetensors"
    assert run("convert", source, "-o", out, "--no-proof", "--exclude", HEAD).code == 0
    assert out.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def _swap(tensors):
    other = SQUARE.replace("h.0", "h.1")
    tensors[SQUARE], tensors[other] = tensors[other], tensors[SQUARE]


def _flip(tensors):
    tensors[LAST].view(torch.int32)[-1] ^= 1


def _untie(tensors):
    tensors[HEAD][1, 2] += 1


SPOILING = {
    "one bit of the last element": _flip,
    "the sign of a zero": lambda t: t[LAST].__setitem__(0, -0.0),
    "the payload of a NaN": lambda t: t[LAST].view(torch.int32).__setitem__(1, 0x7FC00001),
    "transposed": lambda t: t.update({SQUARE: t[SQUARE].t().contiguous()}),
    "swapped": _swap,
    "renamed": lambda t: t.update({"transformer.ln_f.shift": t.pop(LAST)}),
    "lost": lambda t: t.pop(LAST),
    "added": lambda t: t.update({"transformer.more": torch.ones(3)}),
    "another shape": lambda t: t.update({LAST: t[LAST].reshape(8, 8)}),
    "integers": lambda t: t.update({LAST: t[LAST].view(torch.int32)}),
    "untied": _untie,
}


def spoilt(tensors, change):
    """The tensors, one changed, by the change's name."""
    found = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    SPOILING[change](found)
    return found


CHANGES = {
    "one bit of the last element": {LAST: "1 of 64 elements differ, the first at 63"},
    "the sign of a zero": {LAST: "equal in value"},
    "the payload of a NaN": {LAST: "equal in value"},
    "transposed": {SQUARE: "the values are transposed"},
    "swapped": {
        SQUARE: "it has the values of transformer.h.1.attn.c_proj.weight",
        SQUARE.replace("h.0", "h.1"): f"it has the values of {SQUARE}",
    },
    "renamed": {
        LAST: "missing; transformer.ln_f.shift, which is not in SOURCE, has the same values"
    },
    "lost": {LAST: "missing"},
    "added": {"transformer.more": "not in SOURCE"},
    "another shape": {LAST: "shape 8x8, expected 64"},
    "integers": {LAST: "int32, expected float32"},
    "untied": {HEAD: "1 of 16,384 elements differ"},
}


@pytest.fixture(scope="module")
def odd(state):
    """The tensors, with a zero and a NaN."""
    made = {name: tensor.clone() for name, tensor in state.items()}
    made[LAST][0] = 0.0
    made[LAST].view(torch.int32)[1] = 0x7FC00000
    return made


@pytest.fixture(scope="module")
def before(odd, tmp_path_factory):
    """A file of them, and its lock."""
    folder = tmp_path_factory.mktemp("odd")
    path = vendor.save(odd, folder / "m.bin")
    assert run("lock", path, "-o", folder / "lock.json").code == 0
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_every_difference_is_found_and_named(before, odd, tmp_path, change):
    target = tmp_path / "m.safetensors"
    save_file(spoilt(odd, change), target)
    told = failed(run("verify", before, target, "--json"))
    assert told.keys() == CHANGES[change].keys()
    for name, detail in CHANGES[change].items():
        assert detail in told[name]
    locked = failed(run("verify", target, "--lock", before.parent / "lock.json", "--json"))
    assert locked.keys() == told.keys()
    if change in ("renamed", "lost", "added", "another shape"):
        assert all(locked[name].startswith(text[:6]) for name, text in told.items())


@pytest.mark.parametrize("dtype", ["float16", "q8_0", "q4_0"])
def test_a_cast_is_compared_bit_for_bit(source, tmp_path, dtype):
    out = tmp_path / "m.gguf"
    assert run("convert", source, "-o", out, "--no-vocab", "--dtype", dtype).code == 0
    storage = open_checkpoint(out)["blk.1.ffn_up.weight"].storage
    data = bytearray(out.read_bytes())
    data[storage.offset + storage.nbytes - 3] ^= 1
    out.write_bytes(data)
    name = "blk.1.ffn_up.weight"
    told = failed(run("verify", source, out, "--json"))
    assert list(told) == [name]
    assert "1 of" in told[name]
    assert list(failed(run("verify", out, "--json"))) == [name]


def test_what_is_done_must_be_what_is_claimed(source, state, tmp_path):
    out = tmp_path / "m.safetensors"
    run("convert", source, "-o", out, "--dtype", "float16")
    with safe_open(out, "pt") as file:
        told = file.metadata()
    half = load_file(out)
    half[SQUARE] = state[SQUARE].contiguous()  # as the source has it, which was not claimed
    save_file(half, out, metadata=told)
    assert list(failed(run("verify", source, out, "--json"))) == [SQUARE]
    assert list(failed(run("verify", out, "--json"))) == [SQUARE]


def test_the_claim_of_another_source_fails(source, state, tmp_path):
    out = tmp_path / "m.safetensors"
    run("convert", source, "-o", out)
    other = vendor.save(dict(state) | {LAST: state[LAST] + 1}, tmp_path / "other.bin")
    result = run("verify", other, out, "--json")
    assert failed(result).keys() == {LAST, ""}
    assert sum(check["name"] == "claim" for check in result.json["checks"]) == 2


def test_own_claims_find_what_came_and_went(source, tmp_path):
    out = tmp_path / "m.safetensors"
    run("convert", source, "-o", out)
    with safe_open(out, "pt") as file:
        told = file.metadata()
    tensors = load_file(out)
    tensors["new"] = tensors.pop(LAST)
    save_file(tensors, out, metadata=told)
    assert failed(run("verify", out, "--json")).keys() == {LAST, "new"}


@pytest.mark.parametrize(
    "pair", ["{", '{"a": 1}', '{"a": {"sha256": "0"}}', '{"a":{"tied_to":"b"}}']
)
def test_a_claim_that_is_none_is_malformed(tmp_path, pair):
    out = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(2)}, out, metadata={"cgpt_convert.tensors": pair})
    result = run("verify", out)
    assert (result.code, result.out) == (3, "")


LOCKED = {
    "safetensors": ("out.safetensors",),
    "hf": ("out", "--to", "hf"),
    "gguf": ("out.gguf", "--no-vocab"),
}


@pytest.mark.parametrize("kind", LOCKED)
def test_a_lock_holds_in_any_container(source, tmp_path, kind):
    name, *rest = LOCKED[kind]
    assert run("lock", source, "-o", tmp_path / "lock.json").code == 0
    assert run("convert", source, "-o", tmp_path / name, *rest).code == 0
    told = passed(run("verify", tmp_path / name, "--lock", tmp_path / "lock.json", "--json"))
    kinds = {detail.partition(":")[0].partition(" to ")[0] for detail in told.values()}
    expected = {"hf": {"dropped"}, "gguf": {"dropped", "tied"}}
    assert kinds == {"unchanged"} | expected.get(kind, set())


def test_a_lock_says_what_it_locks(source, state, tmp_path):
    out = tmp_path / "lock.json"
    result = run("lock", source, "-o", out)
    assert result.out.splitlines()[1] == whole(state)
    told = json.loads(out.read_text())
    assert told["digest"] == whole(state)
    assert told["model"] == {"architecture": "gpt2", "digest": model(state)}
    data = source.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    assert told["files"] == [{"name": "pytorch_model.bin", "nbytes": len(data), "sha256": sha256}]
    assert list(told["tensors"]) == sorted(state)
    assert told["tensors"][HEAD]["tied_to"] == TABLE
    lines = out.read_text().splitlines()
    assert sum(line.startswith('  "transformer') for line in lines) == len(state) - 1
    assert run("lock", source, "-o", out).code == 4
    assert run("lock", source, "-o", out, "--overwrite").code == 0
    assert json.loads(out.read_text()) == told


def test_a_cast_file_is_not_what_was_locked(source, tmp_path):
    run("lock", source, "-o", tmp_path / "lock.json")
    run("convert", source, "-o", tmp_path / "m.npz", "--dtype", "float16")
    told = failed(run("verify", tmp_path / "m.npz", "--lock", tmp_path / "lock.json", "--json"))
    assert "float16, expected float32 as in the lock; casts need the source" in told[SQUARE]


def test_an_edited_lock_is_refused(source, tmp_path):
    out = tmp_path / "lock.json"
    run("lock", source, "-o", out)
    text = out.read_text()
    for old, new in (("float32", "float99"), ("[64]", "[true]"), ('"sha256": "', '"sha256": "0')):
        out.write_text(text.replace(old, new, 1))
        assert run("verify", source, "--lock", out).code == 3
    first = json.loads(text)["tensors"][LAST]["sha256"]
    out.write_text(text.replace(first, first[::-1]))
    result = run("verify", source, "--lock", out)
    assert result.code == 3
    assert "edited" in result.err


def test_an_in_toto_statement_is_a_lock_too(source, state, tmp_path):
    out = tmp_path / "statement.json"
    assert run("lock", source, "-o", out, "--in-toto").code == 0
    told = json.loads(out.read_text())
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    assert told.keys() == {"_type", "subject", "predicateType", "predicate"}
    file, weights = told["subject"]
    assert file["digest"] == {"sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert weights["digest"] == {
        "cgptConvertTensorsV1": whole(state).removeprefix("sha256:"),
        "cgptConvertModelV1": model(state).removeprefix("sha256:"),
    }
    assert run("verify", source, "--lock", out).code == 0


def test_a_model_of_ggufs_library_reader(source, state, tmp_path):
    """The claims and digests are about what other readers find in the file."""
    run("convert", source, "-o", tmp_path / "m.gguf", "--no-vocab")
    assert model(from_gguf(tmp_path / "m.gguf")) == model(state)


def test_what_people_see(source, tmp_path):
    run("convert", source, "-o", tmp_path / "m.gguf", "--no-vocab", "--dtype", "q8_0")
    shown = run("verify", source, tmp_path / "m.gguf", "-v").out
    assert "rename, transpose, quantize q8_0, max |error|" in shown
    assert "passed: transformer.h.0.attn.bias: dropped: a computed buffer" in shown
    last = shown.splitlines()[-1]
    assert "checks passed" in last
    assert Path(tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("dtype", ["q8_0", "q5_1", "float16"])
def test_a_quantized_source_stands_for_its_numbers(source, tmp_path, dtype):
    run("convert", source, "-o", tmp_path / "m.gguf", "--no-vocab", "--dtype", dtype)
    numbers = from_gguf(tmp_path / "m.gguf")
    assert run("digest", tmp_path / "m.gguf").out.split()[1] == model(numbers)
    for cast, *words in (("keep",), ("bfloat16", "--dtype", "bfloat16")):
        out = tmp_path / f"{cast}.safetensors"
        made = run("convert", tmp_path / "m.gguf", "-o", out, *words, "--verify")
        assert made.code == 0, made.err
        passed(run("verify", out, "--json"))
        told = passed(run("verify", tmp_path / "m.gguf", out, "--json"))
        assert ("dequantize" in told[SQUARE]) == dtype.startswith("q")
        assert run("verify", source, out).code == 1
        with safe_open(out, "pt") as file:
            claim = file.metadata()
        assert claim["cgpt_convert.source_model"] == f"gpt2 {model(numbers)}"
    assert whole(load_file(tmp_path / "keep.safetensors")) == whole(numbers)


@pytest.mark.parametrize(
    "form", ["safetensors", "torch", "npz", "npy", "parameters", "gguf", "hf", "shards"]
)
def test_what_is_written_wrong_gets_no_name(source, tmp_path, monkeypatch, form):
    """A disk that changes a byte of what it was given."""
    write = os.pwrite
    mark = vendor.state_dict(vendor.TINY)[LAST].numpy().tobytes()

    def spoiling(descriptor, data, offset):
        spoilt = bytearray(data)
        if spoilt[: len(mark)] == mark:
            spoilt[5] ^= 1
        return write(descriptor, spoilt, offset)

    monkeypatch.setattr(os, "pwrite", spoiling)
    more = ("--max-shard-size", "100kB") if form == "shards" else ()
    words = ("-o", tmp_path / "out", "--to", "safetensors" if form == "shards" else form, *more)
    words += ("--no-vocab",) if form == "gguf" else ()
    result = run("convert", source, *words, "--verify")
    assert (result.code, result.out) == (1, "")
    name = "output_norm.bias" if form == "gguf" else LAST
    assert f"{name}: 1 of 64 elements differ" in result.err
    assert list(tmp_path.iterdir()) == []
    assert run("convert", source, *words).code == 0


@pytest.mark.parametrize("form", ["json", "junit", "sarif", "github"])
def test_reports_for_ci_name_the_tensor(before, odd, tmp_path, form):
    save_file(spoilt(odd, "swapped"), tmp_path / "m.safetensors")
    result = run("verify", before, tmp_path / "m.safetensors", "--format", form)
    assert result.code == 1
    assert SQUARE in result.out

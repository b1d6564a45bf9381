"""The public functions: what commands do, from Python. torch and safetensors are the oracles."""

import copy
import hashlib
import multiprocessing
import os
import pickle
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cgpt_convert
from cgpt_convert import (
    BadRequest,
    CannotWrite,
    CgptError,
    Malformed,
    Unreadable,
    Unsupported,
    convert,
    diff,
    digest,
    inspect,
    lock,
    open_checkpoint,
    scan,
    verify,
)
from cgpt_convert.scanning.result import Verdict
from tests.helpers import vendor
from tests.helpers.running import run


@pytest.fixture
def saved(tmp_path):
    state = {"w": torch.randn(6, 4), "half": torch.randn(5).bfloat16(), "n": torch.arange(3)}
    path = tmp_path / "model.bin"
    torch.save(state, path)
    return state, path


def same(state, path):
    written = load_file(path)
    assert written.keys() == state.keys()
    return all(torch.equal(written[name], state[name]) for name in state)


def test_every_name_of_the_package_is_there():
    assert set(cgpt_convert.__all__) <= set(dir(cgpt_convert))
    for name in cgpt_convert.__all__:
        assert getattr(cgpt_convert, name) is not None
    for error in (BadRequest, CannotWrite, Unsupported):
        assert issubclass(error, CgptError)
    with pytest.raises(AttributeError):
        _ = cgpt_convert.no_such_name


@pytest.mark.parametrize("opened", [False, True])
def test_inspect_returns_what_the_command_prints(saved, opened):
    _, path = saved
    source = open_checkpoint(path) if opened else path
    assert inspect(source) == run("inspect", path, "--json").json
    full = inspect(source, match="w", stats=True, check=True)
    assert full == run("inspect", path, "--match", "w", "--stats", "--check", "--json").json
    assert full["check"]["ok"]


def test_convert_writes_what_torch_saved(saved, tmp_path):
    state, path = saved
    out = tmp_path / "model.safetensors"
    made = convert(path, out, verify=True)
    assert same(state, out)
    assert made.files == ((str(out), out.name, out.stat().st_size),)
    assert (made.path, made.nbytes) == (str(out), out.stat().st_size)
    assert set(made.tensors) == state.keys()
    again = tmp_path / "by-command.safetensors"
    assert run("convert", path, "-o", again).code == 0
    assert out.read_bytes() == again.read_bytes()


def test_convert_casts_and_counts_what_it_loses(tmp_path):
    state = {"w": torch.tensor([1.0, 1e30, 1e-30, float("nan")]), "n": torch.arange(3)}
    torch.save(state, tmp_path / "model.bin")
    made = convert(tmp_path / "model.bin", tmp_path / "out.safetensors", dtype="float16")
    written = load_file(tmp_path / "out.safetensors")
    assert torch.equal(written["n"], state["n"])
    assert written["w"].dtype == torch.float16
    assert torch.equal(written["w"][:3], state["w"][:3].half())
    assert (made.lossy["w"].overflowed, made.lossy["w"].zeroed) == (1, 1)
    assert (made.not_finite["w"].nan, made.not_finite["w"].infinite) == (1, 0)


def test_a_dry_run_writes_nothing(saved, tmp_path):
    _, path = saved
    dry = convert(path, tmp_path / "out.safetensors", dry_run=True, verify=True)
    assert not (tmp_path / "out.safetensors").exists()
    assert (dry.written, dry.verified) == (False, False)
    made = convert(path, tmp_path / "out.safetensors", verify=True)
    assert (made.written, made.verified) == (True, True)
    assert made.files == dry.files
    with pytest.raises(BadRequest, match="the output would replace the input"):
        convert(path, path, dry_run=True)


def test_progress_counts_every_byte(saved, tmp_path):
    _, path = saved
    counted = {}

    @contextmanager
    def progress(label, total):
        counts: list[int] = []
        yield counts.append
        counted[label] = (total, sum(counts))

    made = convert(path, tmp_path / "out.safetensors", progress=progress)
    (tensors,) = {done for label, (_, done) in counted.items()}
    assert counted == {"writing": (made.nbytes, tensors)}
    assert 0 < tensors <= made.nbytes
    twice = {"a": np.ones(5), "b": np.zeros(3)}
    twice["again"] = twice["a"]
    digest(twice, progress=progress)
    assert counted.pop("hashing") == (64, 64)
    lock(twice, tmp_path / "lock.json", progress=progress)
    assert counted.pop("hashing") == (64, 64)


def test_salvage_skips_damaged_tensors_and_keeps_the_open_checkpoint_as_it_is(tmp_path):
    state = {"good": torch.arange(6.0), "bad": torch.full((100,), 7.5)}
    torch.save(state, tmp_path / "model.bin")
    octets = bytearray((tmp_path / "model.bin").read_bytes())
    octets[octets.index(state["bad"].numpy().tobytes()) + 200] ^= 1
    (tmp_path / "model.bin").write_bytes(octets)
    checkpoint = open_checkpoint(tmp_path / "model.bin")
    for number, source in enumerate((tmp_path / "model.bin", checkpoint)):
        out = tmp_path / f"{number}.safetensors"
        with pytest.raises(Malformed):
            convert(source, out)
        made = convert(source, out, salvage=True)
        assert (made.tensors, [*made.lost]) == (("good",), ["bad"])
        assert made.lost["bad"].nbytes == 400
        assert same({"good": state["good"]}, out)
    assert checkpoint.keys() == state.keys()
    assert not checkpoint.lost


def test_convert_selects(saved, tmp_path):
    state, path = saved
    made = convert(path, tmp_path / "out.safetensors", match=["w", "n"], exclude="n")
    assert same({"w": state["w"]}, tmp_path / "out.safetensors")
    assert made.tensors == ("w",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float12"}, "float12"),
        ({"dtype": "int8"}, "int8"),
        ({"tied": "twice"}, "twice"),
        ({"to": "onnx"}, "onnx"),
        ({"match": "nothing"}, "matches"),
        ({"dtype": "q8_0"}, "use --to gguf"),
        ({"root": "a.b"}, "a.b"),
    ],
)
def test_convert_rejects_options_that_do_not_exist(saved, tmp_path, options, message):
    _, path = saved
    with pytest.raises(BadRequest, match=message):
        convert(path, tmp_path / "out.safetensors", **options)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["path", "symbolic", "hard", "opened"])
def test_the_source_is_not_overwritten_under_any_name(saved, tmp_path, name):
    _, path = saved
    before = path.read_bytes()
    output = path
    if name == "symbolic":
        output = tmp_path / "link.bin"
        output.symlink_to(path)
    elif name == "hard":
        output = tmp_path / "hard.bin"
        os.link(path, output)
    source = open_checkpoint(path) if name == "opened" else path
    with pytest.raises(BadRequest, match="the output would replace the input"):
        convert(source, output, overwrite=True, dtype="float16")
    with pytest.raises(BadRequest, match="the output would replace the input"):
        lock(source, output, overwrite=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("write", [convert, lock])
def test_an_existing_output_is_kept_without_overwrite(saved, tmp_path, write):
    _, path = saved
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(CgptError, match="exists"):
        write(path, out)
    assert out.read_bytes() == b"mine"
    write(path, out, overwrite=True)
    assert out.read_bytes() != b"mine"


@pytest.mark.parametrize("output", ["model.gguf", "hf"])
def test_an_incomplete_model_is_not_written(tmp_path, output):
    state = vendor.state_dict(vendor.TINY)
    del state["transformer.h.1.ln_2.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CgptError) as caught:
        convert(tmp_path / "pytorch_model.bin", tmp_path / output, to=output.rpartition(".")[2])
    assert "ln_2" in str(caught.value)
    assert not (tmp_path / output).exists()


def test_digests_are_the_commands(tmp_path):
    state = {"state_dict": dict(vendor.state_dict(vendor.TINY)), "momentum": torch.ones(3)}
    torch.save(state, tmp_path / "m.ckpt")
    found = digest(tmp_path / "m.ckpt")
    printed = run("digest", tmp_path / "m.ckpt", "--json").json
    assert found.digest == printed["digest"]
    assert (found.weights, found.root) == (printed["weights"]["digest"], "state_dict")
    assert (found.model, found.architecture) == (printed["model"], printed["architecture"])
    assert found.tensors["momentum"] == (
        "float32",
        (3,),
        hashlib.sha256(b"float32 3\n" + torch.ones(3).numpy().tobytes()).hexdigest(),
    )
    assert found.to_dict() == printed
    part = digest(tmp_path / "m.ckpt", root="state_dict")
    assert part.digest == part.weights == found.weights
    torch.save({"model": {"a": torch.ones(1)}, "net": {"a": torch.ones(2)}}, tmp_path / "two.bin")
    unclear = digest(tmp_path / "two.bin")
    assert unclear.weights == ""
    assert unclear.ambiguity == "several keys may contain the weights: model, net"


def test_verify_compares_every_bit(saved, tmp_path):
    state, path = saved
    out = tmp_path / "out.safetensors"
    convert(path, out, dtype="bfloat16")
    equal = verify(path, out)
    assert equal
    assert equal.ok
    assert not equal.failed
    assert equal.scope is not None
    assert equal.scope.to_dict()["files"][0]["compared"] == len(state)
    assert equal.to_dict() | {"logits": None} == run("verify", path, out, "--json").json
    state["w"][3, 2] += 1
    torch.save(state, tmp_path / "changed.bin")
    changed = verify(tmp_path / "changed.bin", open_checkpoint(out), match="w")
    assert not changed
    assert {check.tensor for check in changed.failed} == {"w"}
    every = verify(tmp_path / "changed.bin", open_checkpoint(out))
    assert {check.tensor for check in every.failed} == {"w", ""}  # "": the source's digest
    assert verify(out)
    with pytest.raises(Unsupported):
        verify(path)  # it has no provenance metadata
    with pytest.raises(BadRequest):
        verify(out, match="w")


def test_verify_fails_for_other_weights_in_the_folder(saved, tmp_path):
    _, path = saved
    folder = tmp_path / "folder"
    folder.mkdir()
    convert(path, folder / "model.safetensors")
    assert verify(path, folder)
    torch.save({"w": torch.ones(2)}, folder / "other.bin")
    assert not verify(path, folder)
    assert not verify(path, open_checkpoint(folder))
    assert verify(path, folder / "model.safetensors")


def test_a_lock_is_what_the_command_writes(saved, tmp_path):
    state, path = saved
    made = lock(path, tmp_path / "one.json")
    assert run("lock", path, "-o", tmp_path / "two.json").code == 0
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert made.digest == digest(path).digest
    assert made.path == str(tmp_path / "one.json")
    assert made.tensors.keys() == state.keys()
    assert verify(path, lock=tmp_path / "one.json")
    state["n"][0] = 7
    torch.save(state, tmp_path / "changed.bin")
    assert not verify(tmp_path / "changed.bin", lock=tmp_path / "one.json")
    with pytest.raises(BadRequest):
        verify(path, path, lock=tmp_path / "one.json")


def test_diff_measures(saved, tmp_path):
    state, path = saved
    other = {name: tensor.clone() for name, tensor in state.items()}
    other["w"][0, 0] += 2
    torch.save(other, tmp_path / "other.bin")
    assert diff(path, path).equal
    assert not diff(path, path)
    found = diff(path, tmp_path / "other.bin")
    assert found
    row = next(row for row in found.rows if row.differs)
    assert (row.before, row.numel, row.differing) == ("w", 24, 1)
    assert row.most == float((other["w"].double() - state["w"].double()).abs().max())
    assert diff(path, tmp_path / "other.bin", exclude="w").equal


def test_what_cannot_be_compared_is_not_equal(tmp_path):
    with torch.serialization.skip_data():
        torch.save({"w": torch.ones(3)}, tmp_path / "one.bin")
        torch.save({"w": torch.ones(3), "v": torch.ones(1)}, tmp_path / "two.bin")
    paths = tmp_path / "one.bin", tmp_path / "two.bin"
    found = diff(*paths, match="w")
    assert not found.equal
    assert not any(row.differs for row in found.rows)
    assert run("diff", *paths, "--match", "w").code == 3
    printed = run("diff", *paths, "--match", "w", "--json").json
    assert printed == found.to_dict()
    assert printed["equal"] is False


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


def test_scan_tells_the_worst_verdict(saved, tmp_path):
    _, path = saved
    clean = scan(path)
    assert clean
    assert (clean.verdict, clean.checks[0].outcome) == (Verdict.CLEAN, "passed")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    found = scan(tmp_path)
    assert not found
    assert found.verdict is Verdict.DANGEROUS
    bad = next(file for file in found.files if file.path.endswith("evil.pkl"))
    assert bad.sightings[0].name == "posix.system"
    assert any(check.outcome == "failed" for check in found.checks)
    assert found.to_dict() == run("scan", tmp_path, "--json").json
    assert scan(tmp_path / "evil.pkl", fail_on="dangerous").verdict is Verdict.DANGEROUS
    with pytest.raises(BadRequest):
        scan(tmp_path / "not-there")
    with pytest.raises(BadRequest, match="clean"):
        scan(path, fail_on="clean")


def test_scan_follows_the_policy(saved, tmp_path):
    _, path = saved
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    policy = tmp_path / "policy.toml"
    policy.write_text('[[exclude]]\npaths = "*evil.pkl"\nreason = "a test"\n')
    found = scan(tmp_path, policy=policy)
    assert found
    assert [file.path for file in found.files if file.weights] == [str(path)]
    (tmp_path / "empty").mkdir()
    assert scan(tmp_path / "empty")
    assert not scan(tmp_path / "empty", require_weights=True)


def test_scan_of_what_has_no_weights_is_not_clean(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert scan(tmp_path).verdict is Verdict.NOTHING
    with pytest.raises(BadRequest, match="no path"):
        scan()  # nothing is scanned, so that nothing is clean


def test_a_folder_that_cannot_be_listed_is_not_scanned(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.ones(2))
    (tmp_path / "closed").mkdir()
    listdir = os.listdir

    def deny(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", deny)
    found = scan(tmp_path)
    assert (found.verdict, found.ok, len(found.errors)) == (Verdict.NOT_SCANNED, False, 1)


def test_results_say_what_they_are(saved, tmp_path):
    state, path = saved
    source = open_checkpoint(path)
    out = tmp_path / "out.safetensors"
    shown = f"<Converted {str(out)!r} (not written): 3 tensors, "
    assert repr(convert(source, out, dry_run=True)).startswith(shown)
    assert repr(convert(source, out)) == f"<Converted {str(out)!r}: 3 tensors, {size(out)} bytes>"
    digests = digest(source)
    assert repr(digests) == f"<Digests of {str(path)!r}: {digests.digest}, 3 tensors>"
    locked = lock(source, tmp_path / "lock.json")
    assert repr(locked).endswith(f"3 tensors of {str(path)!r}, {digests.digest}>")
    assert repr(verify(source, out)) == "<Verified: ok, 4 checks>"
    assert repr(scan(path)) == "<ScanResult: clean, 1 file>"
    state["n"][0] = 7
    torch.save(state, tmp_path / "other.bin")
    assert repr(verify(tmp_path / "other.bin", out)) == "<Verified: 2 of 4 checks failed>"
    assert repr(diff(source, tmp_path / "other.bin")).endswith(": 1 of 3 tensors differ>")
    assert repr(diff(source, out)).endswith(": 3 tensors, equal>")


def size(path):
    return f"{path.stat().st_size:,}"


@pytest.mark.parametrize("jobs", [-1, -8])
def test_a_negative_number_of_threads_is_rejected(saved, tmp_path, jobs):
    _, path = saved
    calls: list[Callable[..., object]] = [digest, scan, partial(verify, path)]
    calls += [partial(write, output=tmp_path / "out.safetensors") for write in (convert, lock)]
    for call in calls:
        with pytest.raises(BadRequest, match="threads"):
            call(path, jobs=jobs)
    assert not (tmp_path / "out.safetensors").exists()


def test_tensors_can_be_copied_and_sent_to_other_processes(saved):
    """A copy has no descriptor of its own: the number would be that of another file."""
    state, path = saved
    tensor = open_checkpoint(path)["w"]
    expected = state["w"].numpy()
    again = copy.deepcopy(tensor)
    assert np.array_equal(again.numpy(), expected)
    del again
    assert np.array_equal(tensor.numpy(), expected)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply(np.asarray, (tensor,)), expected)
    sent = pickle.dumps(tensor)
    torch.save({"w": torch.zeros(6, 4)}, path)
    with pytest.raises(Unreadable, match="changed"):
        pickle.loads(sent).numpy()

"""Locks, digests and comparisons of a small model, and what one other bit does to each."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.helpers.recorded import FOLDER
from tests.helpers.running import run

MODEL = FOLDER / "cs"
SAME = (MODEL, FOLDER / "legacy.pt", FOLDER / "cs.safetensors")
NAME = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The model with one bit flipped, in the middle of a tensor."""
    tensors = {name: array.copy() for name, array in load_file(SAME[2]).items()}
    tensors[NAME].reshape(-1).view(np.uint32)[77] ^= 1
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    return path


def test_the_digest_is_that_of_the_tensors_whatever_the_container() -> None:
    found = [run("digest", path, "--tensors", "--json").json for path in SAME]
    assert len({each["digest"] for each in found}) == 1
    rows = {row["name"]: row["sha256"] for row in found[0]["tensors"]}
    arrays = load_file(SAME[2])
    assert rows.keys() == arrays.keys()
    for name, array in arrays.items():
        line = f"{array.dtype} {'x'.join(map(str, array.shape))}\n"
        assert rows[name] == hashlib.sha256(line.encode() + array.tobytes()).hexdigest()


def test_one_bit_changes_the_digest(other: Path) -> None:
    one, two = (run("digest", path).out.split()[0] for path in (MODEL, other))
    assert one != two


@pytest.mark.parametrize("path", SAME, ids=["zip", "legacy", "safetensors"])
def test_equal_weights_are_verified(path: Path) -> None:
    assert run("verify", MODEL, path).code == 0
    assert run("diff", MODEL, path).code == 0


def test_the_tensor_that_differs_is_named(other: Path) -> None:
    found = run("verify", MODEL, other, "--json")
    failed = [check for check in found.json["checks"] if check["outcome"] == "failed"]
    assert (found.code, [check["tensor"] for check in failed]) == (1, [NAME])
    assert "1 of 2,048 elements differ, the first at 77" in failed[0]["detail"]
    changed = run("diff", MODEL, other, "--json")
    rows = [row["after"] for row in changed.json["tensors"] if row["state"] != "equal"]
    assert (changed.code, rows) == (1, [NAME])


def test_a_lock_holds_the_files_and_the_tensors(other: Path, tmp_path: Path) -> None:
    lock = tmp_path / "weights.lock"
    assert run("lock", MODEL, "-o", lock).code == 0
    digest = hashlib.sha256((MODEL / "pytorch_model.bin").read_bytes()).hexdigest()
    assert digest in lock.read_text()
    assert NAME in lock.read_text()
    assert run("verify", MODEL, "--lock", lock).code == 0
    assert run("verify", other, "--lock", lock).code == 1


def test_what_was_converted_says_of_what(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    assert run("convert", MODEL, "-o", out).code == 0
    assert run("verify", out).code == 0
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    assert run("verify", out).code == 1

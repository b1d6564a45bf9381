"""Every target of a small model, read by the libraries of its format where they are at hand."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cgpt_convert import open_checkpoint
from tests.helpers.java_program import Program
from tests.helpers.recorded import FOLDER, IDS
from tests.helpers.running import contents, run

MODEL = FOLDER / "cs"
EXPECTED = load_file(FOLDER / "cs.safetensors")
TARGETS = ("safetensors", "npz", "npy", "torch", "parameters", "hf", "gguf")
COMPUTED = (".attn.bias", ".attn.masked_bias")


def converted(target: str, folder: Path, *more: object) -> Path:
    out = folder / f"out.{target}"
    words = ("--no-vocab",) if target == "gguf" else ()
    done = run("convert", MODEL, "-o", out, "--to", target, *words, *more)
    assert done.code == 0, done.err
    return out


def arrays(target: str, path: Path) -> dict[str, Any]:
    """What lies in the output, not read by our readers where another one is at hand."""
    if target == "safetensors":
        return load_file(path)
    if target == "npz":
        return dict(np.load(path))
    if target == "npy":
        names = json.loads((path / "tensors.json").read_text())["files"]
        return {name: np.load(path / row["file"]) for name, row in names.items()}
    if target == "hf":
        return load_file(path / "model.safetensors")
    return {name: tensor.numpy() for name, tensor in open_checkpoint(path).items()}


@pytest.mark.parametrize("target", TARGETS)
def test_the_elements_are_those_of_the_source(target: str, tmp_path: Path) -> None:
    path = converted(target, tmp_path)
    if target != "gguf":
        found = arrays(target, path)
        assert len(found) > 24
        for name, array in found.items():
            if name == "__metadata__":
                continue
            full = next(n for n in (name, f"transformer.{name}") if n in EXPECTED)
            assert np.array_equal(array, EXPECTED[full]), name
    done = run("verify", MODEL, path)
    assert done.code == 0, done.err
    assert run("diff", MODEL, path).code == 0
    assert run("inspect", path, "--check").code == 0


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_input_gives_the_same_bytes(target: str, tmp_path: Path) -> None:
    outputs = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        converted(target, folder, *(() if target == "parameters" else ("--jobs", 2)))
        outputs.append(contents(folder))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0", "q4_0"])
def test_casts_are_verified(dtype: str, tmp_path: Path) -> None:
    path = converted("gguf", tmp_path, "--dtype", dtype)
    assert run("verify", MODEL, path).code == 0
    rows = run("inspect", path, "--json").json["tensors"]
    assert dtype in {row["dtype"] for row in rows}


def test_a_folder_for_transformers(tmp_path: Path) -> None:
    path = converted("hf", tmp_path, "--max-shard-size", "50kB")
    index = json.loads((path / "model.safetensors.index.json").read_text())
    names = {name for file in set(index["weight_map"].values()) for name in load_file(path / file)}
    assert names == set(index["weight_map"])
    assert {n for n in EXPECTED if not n.endswith(COMPUTED)} - names <= {"lm_head.weight"}
    config = json.loads((path / "config.json").read_text())
    source = json.loads((MODEL / "config.json").read_text())
    for key in ("n_embd", "n_layer", "n_head", "n_inner", "vocab_size", "n_positions"):
        assert config[key] == source[key]


def test_a_way_back_from_gguf(tmp_path: Path) -> None:
    path = converted("gguf", tmp_path)
    out = tmp_path / "back"
    done = run("convert", path, "-o", out, "--to", "hf")
    assert done.code == 0, done.err
    found = load_file(out / "model.safetensors")
    assert {n for n in EXPECTED if not n.endswith(COMPUTED)} - set(found) <= {"lm_head.weight"}
    assert all(np.array_equal(array, EXPECTED[name]) for name, array in found.items())


def test_torch_archives_are_zips_with_a_pickle(tmp_path: Path) -> None:
    with zipfile.ZipFile(converted("torch", tmp_path)) as archive:
        assert archive.testzip() is None
        names = {name.partition("/")[2] for name in archive.namelist()}
    assert {"data.pkl", "version", "byteorder", "data/0"} <= names


def test_the_java_program_computes_its_logits(tmp_path: Path) -> None:
    done = run("extract", MODEL, "-o", tmp_path / "out", "--properties")
    assert done.code == 0, done.err
    expected = np.load(FOLDER / "model.npz")["logits"]
    found = Program(tmp_path / "out").logits(IDS)
    # the program's GELU is the tanh form, the model's is exact
    assert 0 < np.abs(found - expected).max() < 0.01 * np.abs(expected).max()

"""What each command says of a small model that torch wrote: results, errors and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import cgpt_convert
from tests.helpers.recorded import FOLDER
from tests.helpers.running import contents, run

MODEL = FOLDER / "cs" / "pytorch_model.bin"
DEMO = Path(cgpt_convert.__file__).parent / "demo"
EXPECTED = load_file(FOLDER / "cs.safetensors")
NAME = "transformer.h.1.mlp.c_fc.weight"


def test_inspect_lists_every_tensor() -> None:
    done = run("inspect", MODEL)
    assert (done.code, done.err) == (0, "")
    assert "PyTorch zip archive" in done.out
    assert "weights only" in done.out
    rows = {row["name"]: row for row in run("inspect", MODEL, "--json").json["tensors"]}
    assert set(rows) == set(EXPECTED)
    for name, array in EXPECTED.items():
        assert (rows[name]["dtype"], tuple(rows[name]["shape"])) == (array.dtype, array.shape)
        assert name in done.out


def test_inspect_computes_statistics() -> None:
    rows = {row["name"]: row for row in run("inspect", MODEL, "--stats", "--json").json["tensors"]}
    for name, array in EXPECTED.items():
        stats, exact = rows[name]["stats"], array.astype(np.float64)
        assert (stats["min"], stats["max"]) == (exact.min(), exact.max())
        assert stats["mean"] == pytest.approx(exact.mean(), abs=1e-9)
        assert stats["std"] == pytest.approx(exact.std(), rel=1e-6, abs=1e-9)


def test_inspect_folds_modules_and_sorts() -> None:
    assert "attn" in run("inspect", MODEL, "--tree").out
    names = [
        row["name"] for row in run("inspect", MODEL, "--sort", "name", "--json").json["tensors"]
    ]
    assert names == sorted(
        names, key=lambda n: [int(p) if p.isdigit() else p for p in n.split(".")]
    )
    only = run("inspect", MODEL, "--match", "*.wte.weight", "--json").json["tensors"]
    assert [row["name"] for row in only] == ["transformer.wte.weight"]


def test_scan_finds_weights_only() -> None:
    done = run("scan", FOLDER, "--json")
    assert done.code == 0
    assert run("scan", DEMO).code == 0


def test_extract_writes_the_bytes_of_the_tensors(tmp_path: Path) -> None:
    done = run("extract", MODEL, "-o", tmp_path / "p", "--by", "name")
    assert done.code == 0, done.err
    mapping = json.loads((tmp_path / "p" / "mapping.json").read_text())["tensors"]
    for name, array in EXPECTED.items():
        if name in mapping:
            assert (tmp_path / "p" / mapping[name]["file"]).read_bytes() == array.tobytes()
    assert {*EXPECTED} - {*mapping} <= {"lm_head.weight"}
    done = run("extract", MODEL, "--stdout", NAME)
    assert (done.code, done.raw) == (0, EXPECTED[NAME].tobytes())


def test_convert_says_what_it_would_write_and_writes_nothing(tmp_path: Path) -> None:
    done = run("convert", MODEL, "-o", tmp_path / "m.npz", "--dry-run")
    assert (done.code, list(tmp_path.iterdir())) == (0, [])
    assert "m.npz" in done.out


def test_convert_keeps_to_the_chosen_tensors(tmp_path: Path) -> None:
    words = ("--match", "*.c_fc.*", "--exclude", "*.bias", "--dtype", "float16")
    out = tmp_path / "m.safetensors"
    assert run("convert", MODEL, "-o", out, *words).code == 0
    found = load_file(out)
    assert set(found) == {f"transformer.h.{n}.mlp.c_fc.weight" for n in range(2)}
    assert all(np.array_equal(a, EXPECTED[n].astype(np.float16)) for n, a in found.items())


def test_output_is_not_replaced_unless_told(tmp_path: Path) -> None:
    out = tmp_path / "m.npz"
    out.write_bytes(b"precious")
    assert run("convert", MODEL, "-o", out).code == 4
    assert contents(tmp_path) == {"m.npz": b"precious"}
    assert run("convert", MODEL, "-o", out, "--overwrite").code == 0
    assert set(np.load(out)) >= {NAME}


ERRORS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "no such file": (2, ("inspect", FOLDER / "none.bin")),
    "no such command": (2, ("frobnicate",)),
    "no such option": (2, ("inspect", MODEL, "--none")),
    "no such type": (2, ("convert", MODEL, "-o", "x.npz", "--dtype", "int3")),
    "no such tensor": (2, ("extract", MODEL, "--stdout", "none")),
    "too many tokens": (2, ("generate", MODEL, "--ids", "1", "--max-new-tokens", 50)),
    "no tokenizer": (2, ("generate", MODEL, "text")),
    "not weights": (3, ("inspect", FOLDER / "cs" / "config.json")),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_its_exit_code_and_no_output(name: str) -> None:
    code, words = ERRORS[name]
    done = run(*words)
    assert (done.code, done.out) == (code, "")
    assert done.err


def test_models_are_listed() -> None:
    done = run("models", "--json")
    assert done.code == 0
    assert "cerebras-gpt-111m" in done.out.lower()


def test_the_demo_runs(tmp_path: Path) -> None:
    done = run("demo", tmp_path / "demo")
    assert done.code == 0, done.err
    assert (tmp_path / "demo" / "pytorch_model.bin").exists()


def test_eval_finds_the_recorded_loss_of_the_demo(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text((DEMO / "held-out.txt").read_text()[:1500])
    done = run("eval", DEMO, "--text", text, "--json")
    assert done.code == 0, done.err
    against = run("eval", DEMO, "--text", text, "--against", DEMO, "--json")
    assert against.code == 0, against.err
    assert done.json["tokens"] > 200

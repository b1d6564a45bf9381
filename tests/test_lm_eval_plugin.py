"""lm-eval's own command with the model class `cgpt`, against its `hf` on the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cgpt_convert
from cgpt_convert.core.errors import BadRequest
from tests.helpers.running import ROOT, environ, run

pytestmark = pytest.mark.slow  # lm-eval
DEMO = Path(cgpt_convert.__file__).parent / "demo"
MODEL = DEMO / "pytorch_model.bin"
TASKS = "tests/data/lm_eval"
NAMES = ("austen_choice", "austen_perplexity", "austen_generate")

WITHOUT_TORCH = """
import runpy, sys
from importlib.machinery import PathFinder

found = PathFinder.find_spec
hidden = ("torch", "transformers")
PathFinder.find_spec = lambda name, *rest: None if name in hidden else found(name, *rest)
runpy.run_module("cgpt_convert.lm_eval_plugin", run_name="__main__", alter_sys=True)
assert not {*hidden} & sys.modules.keys()
"""

Answers = dict[str, list[Any]]
Metrics = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harness")
    done = run("convert", MODEL, "-o", path / "hf", "--to", "hf")
    assert done.code == 0, done.err
    return path


def words(model: str, arguments: str, out: Path) -> list[str]:
    """A command line of lm-eval's."""
    return [
        *("--model", model, "--model_args", arguments, "--device", "cpu", "--log_samples"),
        *("--include_path", TASKS, "--tasks", ",".join(NAMES), "--output_path", str(out)),
    ]


def written(out: Path) -> tuple[Answers, Metrics]:
    """What lm-eval wrote: the answers to each task's requests, and the metrics."""
    answers = {}
    for name in NAMES:
        (path,) = out.rglob(f"samples_{name}_*.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        answers[name] = [sample["resps"] for sample in samples]
    (path,) = out.rglob("results_*.json")
    return answers, json.loads(path.read_text())["results"]


@pytest.fixture(scope="module")
def ours(folder: Path) -> tuple[Answers, Metrics]:
    """In a process that has no torch and no transformers: the extra `eval` installs neither."""
    arguments = words("cgpt", f"path={MODEL}", folder / "ours")
    more = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        cwd=ROOT,
        env=environ(**more),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return written(folder / "ours")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[Answers, Metrics]:
    """lm-eval's own `hf`, in this process, where its libraries are imported already."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lm-eval and what it imports
        import datasets
        from lm_eval.__main__ import cli_evaluate

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.chdir(ROOT)
        arguments = words("hf", f"pretrained={folder / 'hf'}", folder / "theirs")
        patch.setattr(sys, "argv", ["lm_eval", *arguments])
        cli_evaluate()
    return written(folder / "theirs")


@pytest.mark.parametrize("name", NAMES[:2])
def test_log_probabilities_are_those_of_hf(ours, theirs, name):
    found, expected = _flat(ours[0][name]), _flat(theirs[0][name])
    assert len(found) == len(expected) > 4
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, bool) or str(one) in ("True", "False"):
            assert str(one) == str(other)
        else:
            assert float(one) == pytest.approx(float(other), rel=1e-5)


def _flat(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, list) else [value]


def test_texts_are_those_of_hf(ours, theirs):
    assert ours[0]["austen_generate"] == theirs[0]["austen_generate"]
    texts = _flat(ours[0]["austen_generate"])
    assert len(set(texts)) == len(texts) == 7
    assert not any(stop in text for text in texts for stop in ".\n")


def test_metrics_are_those_of_hf(ours, theirs):
    for name in NAMES:
        for metric, value in theirs[1][name].items():
            same = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert ours[1][name][metric] == same, (name, metric)


def test_the_rolling_loss_is_that_of_eval(ours, tmp_path):
    rows = [json.loads(line) for line in (ROOT / TASKS / "passages.jsonl").read_text().splitlines()]
    found = _flat(ours[0]["austen_perplexity"])
    for row, value in zip(rows, found, strict=True):
        (tmp_path / "text").write_text(row["text"])
        result = run("eval", MODEL, "--text", tmp_path / "text", "--json").json
        assert -float(value) == pytest.approx(result["cross_entropy"] * result["tokens"])


def test_no_room_for_what_is_to_be_generated():
    from cgpt_convert.lm_eval_plugin import CgptLM

    request = SimpleNamespace(args=("She was", {}))
    with pytest.raises(BadRequest, match="256 new tokens leave no room"):
        CgptLM(str(MODEL)).generate_until([request])

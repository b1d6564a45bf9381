"""A small model computes what transformers computed of it in float64, as recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cgpt_convert
from cgpt_convert import open_checkpoint
from cgpt_convert.inference.evaluate.cross_entropy import evaluate
from cgpt_convert.inference.evaluate.text_windows import rolling_windows
from cgpt_convert.inference.model import Model
from tests.helpers.recorded import FOLDER, IDS
from tests.helpers.running import run

MODEL = FOLDER / "cs"
EXPECTED = dict(np.load(FOLDER / "model.npz"))
DEMO = Path(cgpt_convert.__file__).parent / "demo"


@pytest.fixture(scope="module", params=["cs", "safetensors", "npz", "torch", "gguf"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The model from each kind of file."""
    if request.param == "cs":
        return Model(open_checkpoint(MODEL), resident=True)
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "config.json").write_bytes((MODEL / "config.json").read_bytes())
    out = folder / f"m.{request.param}"
    more = ["--no-vocab"] if request.param == "gguf" else []
    assert run("convert", MODEL, "-o", out, "--to", request.param, *more).code == 0
    return Model(open_checkpoint(out), activation="gelu", resident=True)


def test_logits(ours: Model) -> None:
    found = ours.logits(ours.hidden([IDS])[0])
    assert np.abs(found - EXPECTED["logits"]).max() < 1e-5 * np.abs(EXPECTED["logits"]).max()


def test_a_cache_changes_nothing(ours: Model) -> None:
    cache = ours.cache()
    ours.next_logits([IDS[:10]], cache)
    for position in range(10, len(IDS)):
        found = ours.next_logits([IDS[position : position + 1]], cache)[0]
        assert np.allclose(found, EXPECTED["logits"][position], rtol=1e-4, atol=1e-5)


def test_the_loss() -> None:
    ours = Model(open_checkpoint(MODEL), resident=True)
    loss = evaluate(ours, np.array(IDS), rolling_windows(len(IDS) - 1, 32, 32), 96)
    assert loss.nats / loss.tokens == pytest.approx(float(EXPECTED["loss"]), rel=1e-5)


@pytest.mark.parametrize(("name", "beams"), [("greedy", 1), ("beams", 3)])
def test_what_follows(name: str, beams: int) -> None:
    ids = ",".join(map(str, IDS))
    words = ("--ids", ids, "--max-new-tokens", 8, "--beams", beams, "--no-repeat-ngram", 2)
    done = run("generate", MODEL, *words, "--json")
    assert done.code == 0, done.err
    assert done.json["new_ids"] == EXPECTED[name].tolist()


def test_sampling_depends_on_the_seed_only() -> None:
    def text(seed: int) -> str:
        words = ("--max-new-tokens", 12, "--temperature", 1.5, "--top-k", 50, "--seed", seed)
        done = run("generate", DEMO, "It is a truth", *words)
        assert done.code == 0, done.err
        return done.out

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_copies_have_the_same_states_and_others_do_not(tmp_path: Path) -> None:
    assert run("verify", MODEL, FOLDER / "legacy.pt", "--logits", "--heads", 4).code == 0
    out = tmp_path / "m.gguf"
    assert run("convert", MODEL, "-o", out, "--no-vocab", "--dtype", "q8_0").code == 0
    found = run("verify", MODEL, out, "--logits", "--json")
    assert found.code == 0, found.err
    compared = found.json["logits"]
    names = [state["name"] for state in compared["states"]]
    assert names[:3] == ["embeddings", "h.0", "h.1"]
    assert all(0 < state["nmse"] < 1e-3 for state in compared["states"])

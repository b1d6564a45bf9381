"""Two files of one model side by side: what is told of their difference, and what is tolerated."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cgpt_convert.errors import BadRequest
from cgpt_convert.models.compare import TOLERANCES, Comparison, compare
from cgpt_convert.models.model import Model
from cgpt_convert.opening import open_checkpoint
from tests import vendor
from tests.running import run
from tests.small_models import KINDS, as_kind, oracle, write

SMALL = vendor.Shape(3, 96, 6, 384, 512, 160)
IDS = np.random.default_rng(0).integers(0, 300, 40).tolist()
STATES = ("embeddings", "h.0", "h.1", "h.2", "ln_f", "logits")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write(tmp_path_factory.mktemp("small"), SMALL)


def compared(source: Path, target: Path, **settings) -> Comparison:
    return compare(open_checkpoint(source), open_checkpoint(target), IDS, **settings)


def changed(small: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    state = torch.load(small / "pytorch_model.bin", weights_only=True)
    change(state)
    torch.save(state, out / "pytorch_model.bin")
    (out / "config.json").write_bytes((small / "config.json").read_bytes())
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_faithful_copy_passes(small, tmp_path, kind):
    found = compared(small, as_kind(small, kind, tmp_path / "out"))
    assert found.ok
    assert found.agreement == 1
    assert found.dtype == "float32"
    assert tuple(each.name for each in found.differences) == STATES


@pytest.mark.parametrize("dtype", [name for name in TOLERANCES if not name.startswith("float")])
def test_what_a_type_costs_is_tolerated_but_not_by_the_next_better(small, tmp_path, dtype):
    out = tmp_path / "m.gguf"
    assert run("convert", small, "-o", out, "--dtype", dtype, "--no-vocab").code == 0
    found = compared(small, out)
    assert (found.ok, found.dtype) == (True, dtype)
    better = {"q4_0": "q5_0", "q4_1": "q5_1", "q5_0": "q8_0", "q5_1": "q8_0", "q8_0": "bfloat16"}
    stricter = TOLERANCES[better.get(dtype, "float16")]
    assert not compared(small, out, tolerance=stricter).ok


def bias(state):
    state["transformer.h.1.attn.c_proj.bias"].zero_()


def transposed(state):
    weight = state["transformer.h.1.attn.c_proj.weight"]
    state["transformer.h.1.attn.c_proj.weight"] = weight.t().contiguous()


def swapped(state):
    names = "transformer.h.2.ln_1.weight", "transformer.h.2.ln_2.weight"
    state[names[0]], state[names[1]] = state[names[1]], state[names[0]]


def head(state):
    state["transformer.ln_f.bias"].add_(0.1)


def token(state):
    wte = state["transformer.wte.weight"].clone()
    wte[IDS[0]] += 0.1
    state["transformer.wte.weight"] = state["lm_head.weight"] = wte


MUTATIONS = {bias: "h.1", transposed: "h.1", swapped: "h.2", head: "ln_f", token: "embeddings"}


@pytest.mark.parametrize("change", MUTATIONS, ids=lambda change: change.__name__)
def test_the_first_layer_that_differs_is_named(small, tmp_path, change):
    found = compared(small, changed(small, tmp_path, change))
    assert found.first
    assert found.first.name == MUTATIONS[change]
    before = STATES[: STATES.index(MUTATIONS[change])]
    assert all(each.greatest == 0 for each in found.differences[: len(before)])


def test_another_activation_is_seen_in_the_first_layer(small, tmp_path):
    folder = changed(small, tmp_path, lambda _state: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"activation_function": "gelu_new"}))
    found = compared(small, folder)
    assert found.first
    assert found.first.name == "h.0"
    assert found.agreement > 0.9  # which is why nobody notices


def test_the_numbers_are_those_of_transformers(small, tmp_path):
    other = changed(small, tmp_path, transposed)
    with torch.no_grad():
        one, two = (
            oracle(folder)(torch.tensor([IDS]), output_hidden_states=True)
            for folder in (small, other)
        )
    pairs = [*zip(one.hidden_states, two.hidden_states, strict=True), (one.logits, two.logits)]
    found = [each for each in compared(small, other).differences if each.name != "h.2"]
    for each, (a, b) in zip(found, pairs, strict=True):
        assert each.greatest == pytest.approx(float((b - a).abs().max()), rel=1e-3, abs=1e-5)
        nmse = float(((b - a).double() ** 2).sum() / (a.double() ** 2).sum())
        assert each.nmse == pytest.approx(nmse, rel=1e-3, abs=1e-10)
    same = (one.logits.argmax(-1) == two.logits.argmax(-1)).float().mean()
    assert compared(small, other).agreement == pytest.approx(float(same))


def test_what_is_no_number_is_past_every_tolerance(small, tmp_path):
    def spoil(state):
        state["transformer.h.1.ln_2.bias"][0] = float("nan")

    found = compared(small, changed(small, tmp_path, spoil), tolerance=1e9)
    assert found.first
    assert found.first.name == "h.1"


def test_a_gguf_is_computed_with_the_sources_activation(small, tmp_path):
    out = tmp_path / "m.gguf"
    assert run("convert", small, "-o", out, "--no-vocab").code == 0
    assert compared(small, out).ok  # no config.json lies beside it


def test_models_of_different_sizes_are_not_compared(small, tmp_path):
    other = write(tmp_path, SMALL._replace(n_layer=2))
    with pytest.raises(BadRequest) as caught:
        compared(small, other)
    assert "n_layer is 2, but 3" in caught.value.message


def test_a_streamed_pass_holds_one_block_besides_the_embeddings(tmp_path):
    shape = vendor.Shape(6, 256, 4, 1024, 64, 32)
    folder = write(tmp_path, shape)
    model = Model(open_checkpoint(folder))
    list(model.states([[1, 2]]))  # the embeddings are in memory, everything is imported
    block = 4 * (12 * shape.n_embd**2 + 13 * shape.n_embd)
    tracemalloc.start()
    try:
        for _ in range(2):
            list(model.states([[1, 2, 3]]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert block < peak < 1.5 * block

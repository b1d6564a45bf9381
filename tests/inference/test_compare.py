"""Two files of one model side by side: what is told of their difference, and what is tolerated."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cgpt_convert.core.errors import BadRequest
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.inference import compare as inference_compare
from cgpt_convert.inference import model
from cgpt_convert.inference.compare import TOLERANCES, Comparison, compare
from cgpt_convert.inference.model import Model
from tests.helpers import vendor
from tests.helpers.running import run
from tests.helpers.small_models import KINDS, as_kind, oracle, write

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


@pytest.mark.parametrize("part", [model.PART_NBYTES, 20_000])  # all the vocabulary, and 52 of 512
def test_the_numbers_are_those_of_transformers(small, tmp_path, part, monkeypatch):
    monkeypatch.setattr(model, "PART_NBYTES", part)
    monkeypatch.setattr(inference_compare, "_PIECE", part // 4)
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


def test_a_head_of_its_own_is_compared(tmp_path):
    one = write(tmp_path / "one", SMALL, tie_word_embeddings=False)

    def shifted(state):
        state["lm_head.weight"][100] += 1

    (tmp_path / "other").mkdir()
    found = compared(one, changed(one, tmp_path / "other", shifted))
    assert found.first
    assert found.first.name == "logits"
    assert all(each.greatest == 0 for each in found.differences[:-1])


def test_the_likeliest_token_of_parts_is_that_of_the_whole():
    random = np.random.default_rng(5)
    logits = random.integers(0, 4, (200, 30)).astype("f4")  # ties in every row
    logits[random.random(logits.shape) < 0.02] = np.nan
    logits[random.random(logits.shape) < 0.2] = -np.inf
    logits[0] = -np.inf
    likeliest = inference_compare.TopTokens(len(logits))
    for part in np.split(logits, [7, 8, 21], axis=1):
        likeliest.add(part)
    assert np.array_equal(likeliest.tokens, logits.argmax(-1))


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


@pytest.fixture
def peak():
    """The most bytes that a call had in use; NumPy reports its arrays to tracemalloc."""

    def during(call: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return during


def test_a_streamed_pass_holds_one_block(tmp_path, peak):
    shape = vendor.Shape(6, 256, 4, 1024, 6000, 32)
    warm, model = (Model(open_checkpoint(path)) for path in [write(tmp_path, shape)] * 2)
    list(warm.states([[1, 2]]))  # everything is imported
    block = 4 * (12 * shape.n_embd**2 + 13 * shape.n_embd)
    assert 4 * shape.vocab_size * shape.n_embd > 1.5 * block
    assert block < peak(lambda: list(model.states([[1, 5999, 3]]))) < 1.5 * block


@pytest.mark.parametrize("target", ["m.safetensors", "m.gguf --dtype q8_0", "m.gguf"])
def test_no_table_of_embeddings_is_ever_in_memory(tmp_path, target, peak):
    shape = vendor.Shape(2, 32, 2, 128, 300_000, 32)
    source = write(tmp_path / "source", shape)
    name, *dtype = target.split()
    no_vocab = ["--no-vocab"] if "gguf" in name else []
    assert run("convert", source, "-o", tmp_path / name, *dtype, *no_vocab).code == 0
    found = []

    def both() -> None:
        pair = open_checkpoint(source), open_checkpoint(tmp_path / name)
        found.append(compare(*pair, [1, 299_999, 1]))

    table = 4 * shape.vocab_size * shape.n_embd
    both()  # everything is imported
    assert peak(both) < table / 2
    assert all(each.ok for each in found)

"""The forward pass against transformers': layer by layer, every option, every kind of file."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from cgpt_convert.architectures.activations import ACTIVATIONS, ERF
from cgpt_convert.architectures.gpt2 import forward
from cgpt_convert.core.errors import BadRequest, CgptError, Unsupported
from cgpt_convert.core.threads import ThreadPool
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.inference import backend_numpy, gelu, weights
from cgpt_convert.inference.backend import backend
from cgpt_convert.inference.model import Model
from cgpt_convert.tensors.tensor import replace
from tests.helpers import vendor
from tests.helpers.running import run
from tests.helpers.small_models import KINDS, as_kind, logits, oracle, relative, write

LIMIT = 1e-5
SMALL = vendor.Shape(3, 96, 6, 384, 512, 160)
WIDTHS = {
    64: vendor.Shape(3, 128, 2, 512, 300, 160),
    80: vendor.Shape(2, 240, 3, 960, 300, 160),
    128: vendor.Shape(2, 256, 2, 1024, 300, 160),
}
IDS = np.random.default_rng(0).integers(0, 300, (2, 150))  # more than one block of queries


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("small"), SMALL)


def opened(path: Path, engine: str = "numpy", **settings) -> Model:
    return Model(open_checkpoint(path), engine, **settings)


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize("layout", vendor.LAYOUTS)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_layer_is_that_of_transformers(tmp_path, width, layout, engine):
    folder = write(tmp_path, WIDTHS[width], layout)
    with torch.no_grad():
        expected = oracle(folder)(torch.from_numpy(IDS), output_hidden_states=True)
    model = opened(folder, engine)
    states = [state.copy() for state in model.states(IDS)]
    *before, last = (state.numpy() for state in expected.hidden_states)
    for found, theirs in zip(states, before, strict=False):
        assert relative(found, theirs) < LIMIT
    assert len(states) == len(before) + 1
    assert relative(model.hidden(IDS), last) < LIMIT
    found = np.concatenate(list(model.logits_in_blocks(IDS[1])))
    assert relative(found, expected.logits[1].numpy()) < LIMIT
    assert relative(model.next_logits(IDS), expected.logits[:, -1].numpy()) < LIMIT


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize(
    "config",
    [
        {"activation_function": "gelu_new"},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"layer_norm_epsilon": 0.1},
        {"tie_word_embeddings": False},
        {"n_head": 2},
    ],
    ids=lambda config: next(iter(config)),
)
def test_every_option_is_honoured(small, tmp_path, config, engine):
    folder = write(tmp_path, SMALL, **config)
    expected = logits(oracle(folder), IDS[:1])[0]
    found = opened(folder, engine).logits(opened(folder, engine).hidden(IDS[:1])[0])
    assert relative(found, expected) < LIMIT
    if "reorder_and_upcast_attn" not in config:  # which changes nothing in float32
        assert relative(found, logits(oracle(small), IDS[:1])[0]) > 10 * LIMIT


def test_a_feed_forward_layer_of_another_width(tmp_path):
    folder = write(tmp_path, SMALL._replace(n_inner=200))
    assert relative(opened(folder).next_logits(IDS), logits(oracle(folder), IDS)[:, -1]) < LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_logits(small, tmp_path, kind):
    path = as_kind(small, kind, tmp_path / "out")
    expected = opened(small).hidden(IDS)
    assert relative(opened(path).hidden(IDS), expected) < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_weights_are_computed_in_float32(small, tmp_path, dtype):
    out = tmp_path / "m.safetensors"
    assert run("convert", small, "-o", out, "--dtype", dtype).code == 0
    (tmp_path / "config.json").write_bytes((small / "config.json").read_bytes())
    model = oracle(small).to(getattr(torch, dtype)).float()
    assert relative(opened(out).next_logits(IDS), logits(model, IDS)[:, -1]) < LIMIT


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_quantized_weights_are_those_that_the_file_holds(small, tmp_path, dtype):
    from gguf import GGUFReader, dequantize

    out = tmp_path / "m.gguf"
    assert run("convert", small, "-o", out, "--dtype", dtype, "--no-vocab").code == 0
    (tmp_path / "config.json").write_bytes((small / "config.json").read_bytes())
    model = oracle(small)
    held = {
        t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy())
        for t in GGUFReader(out).tensors
    }
    with torch.no_grad():
        model.transformer.wte.weight.copy_(held["token_embd.weight"])
        for number, layer in enumerate(model.transformer.h):
            for ours, theirs in (
                (layer.attn.c_attn, "attn_qkv"),
                (layer.attn.c_proj, "attn_output"),
                (layer.mlp.c_fc, "ffn_up"),
                (layer.mlp.c_proj, "ffn_down"),
            ):
                ours.weight.copy_(held[f"blk.{number}.{theirs}.weight"].T)
    assert relative(opened(out).next_logits(IDS), logits(model, IDS)[:, -1]) < LIMIT


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_with_the_cache_as_without(small, engine):
    model = opened(small, engine, resident=True)
    whole = model.hidden(IDS)
    cache = model.cache(2, 150)
    pieces = [model.hidden(IDS[:, at:end], cache) for at, end in ((0, 7), (7, 8), (8, 140))]
    pieces += [model.hidden(IDS[:, at : at + 1], cache) for at in range(140, 150)]
    assert relative(np.concatenate(pieces, axis=1), whole) < LIMIT
    assert cache.length == 150


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_the_work_and_change_nothing(small, threads, monkeypatch):
    expected, cache = opened(small).hidden(IDS), opened(small).cache(2, 151)
    monkeypatch.setattr(backend_numpy, "_PART", 1)
    model = Model(open_checkpoint(small), backend("numpy", threads), resident=True)
    assert relative(model.hidden(IDS, cache), expected) < LIMIT
    one = opened(small).next_logits(np.hstack([IDS, IDS[:, :1]]))
    assert relative(model.next_logits(IDS[:, :1], cache), one) < LIMIT


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 3, 8, 9])
@pytest.mark.parametrize("order", ["C", "F"])
def test_products_of_few_rows(order, rows, threads, monkeypatch):
    monkeypatch.setattr(backend_numpy, "_PART", 1)
    monkeypatch.setattr(backend_numpy, "_BLOCK", 1000)
    random = np.random.default_rng(3)
    x = random.standard_normal((rows, 70)).astype("f4")
    w = random.standard_normal((70, 110)).astype("f4", order=order)
    found = backend("numpy", threads).matmul(x, w)
    assert found.dtype == np.float32
    assert relative(found, x.astype("f8") @ w) < LIMIT


def test_what_fails_in_a_thread_fails_here():
    with pytest.raises(ZeroDivisionError):
        backend("numpy", 2).share(2, 1 << 30, lambda part: 1 // (1 - part.start))


def test_threads_answer_in_order_and_none_is_left_at_work_when_one_fails():
    pool, ended = ThreadPool(3), []

    def work(part):
        time.sleep(0.01 * (6 - part))
        ended.append(part)
        return 12 // (part - 2) if fails else part

    fails = False
    assert pool.map(work, range(6)) == [0, 1, 2, 3, 4, 5]
    fails = True
    ended.clear()
    with pytest.raises(ZeroDivisionError):
        pool.map(work, range(6))
    assert sorted(ended) == [0, 1, 2, 3, 4, 5]


def test_the_threads_end_with_their_pool():
    before = threading.active_count()
    pool = ThreadPool(2)
    assert threading.active_count() == before + 2
    del pool
    for _ in range(500):
        if threading.active_count() == before:
            break
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_cache_of_chosen_sequences(small):
    model = opened(small)
    cache, other = model.cache(2, 40), model.cache(3, 40)
    model.next_logits(IDS[:, :20], cache)
    other.select(cache, [1, 0, 1])
    found = model.next_logits(IDS[[1, 0, 1], 20:21], other)
    assert relative(found, model.next_logits(IDS[[1, 0, 1], :21])) < LIMIT


def of_tensors(model, tensors):
    """Weights that are read from these tensors."""
    return weights.ModelWeights(model.source._replace(tensors=tensors), model.xp, resident=False)


def test_a_block_is_read_when_it_is_asked_for_and_then_forgotten(small):
    class Counting(dict):
        def __getitem__(self, key):
            asked.append(key)
            return super().__getitem__(key)

    asked: list[tuple[str, int | None]] = []
    model = opened(small)
    model.weights = of_tensors(model, Counting(model.source.tensors))
    for number, _ in enumerate(model.states(IDS)):
        assert {layer for _, layer in asked} == {None, *range(number)}
    assert len(asked) == 2 + 12 * SMALL.n_layer
    model.logits(model.hidden(IDS)[0])
    asked.clear()
    model.hidden(IDS)
    assert ("wte.weight", None) not in asked  # the head, which is kept
    assert ("h.{i}.ln_1.weight", 0) in asked  # read again


def test_a_distant_table_is_fetched_once(small):
    class Far:
        distant, nbytes, name = True, 0, "far"

        def readinto(self, offset, buffer):
            self.nbytes += len(buffer)
            near.readinto(offset, buffer)

    model, far = opened(small), Far()
    table = model.source.tensors["wte.weight", None]
    near = table.storage.source
    table = replace(table, storage=replace(table.storage, source=far))
    tensors = {**model.source.tensors, ("wte.weight", None): table}
    model.weights = of_tensors(model, tensors)
    hidden = model.hidden(IDS)[0]
    found = np.concatenate([*model.logits_by_vocabulary(hidden)], axis=1)
    assert relative(found, opened(small).logits(opened(small).hidden(IDS)[0])) < 1e-6
    assert far.nbytes == table.nbytes


def test_resident_weights_are_read_once(small, monkeypatch):
    model = opened(small, resident=True)
    model.load(2)
    expected = model.hidden(IDS)
    monkeypatch.setattr(weights, "read", None)
    assert np.array_equal(model.hidden(IDS), expected)
    kept = sum(array.nbytes for array in model.weights._kept.values())  # noqa: SLF001  told nowhere
    assert kept == 4 * sum(parameter.numel() for parameter in oracle(small).parameters())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
    x = np.concatenate([np.linspace(-9, 9, 50_001), 10.0 ** np.arange(-30, 4)]).astype("f4")
    x = np.concatenate([x, -x])
    if name not in ACT2FN:
        pytest.skip(f"this version of transformers has no {name}")
    expected = ACT2FN[name](torch.from_numpy(x).double()).numpy()
    found = (gelu.erf_ if ACTIVATIONS[name] == ERF else gelu.tanh_)(x.copy())
    assert (np.abs(found - expected) <= 3e-7 * np.abs(x)).all()


def test_gelu_by_erf_against_the_standard_library():
    x = np.linspace(-8, 8, 20_001, dtype="f4")
    expected = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()]
    error = np.abs(gelu.erf_(x.copy()) - expected)
    assert (error <= 2e-7 * np.abs(x)).all()
    assert error[np.abs(x) < 1].max() < 1.2e-7


def test_gelu_of_what_is_no_number():
    x = np.array([0.0, -0.0, np.inf, -3e38, 3e38, np.nan], "f4")
    with np.errstate(all="raise", under="ignore", over="ignore", invalid="ignore"):
        found = gelu.erf_(x.copy())
    expected = np.array([0, 0, np.inf, 0, 3e38, np.nan], "f4")
    assert np.array_equal(found, expected, equal_nan=True)


def test_gelu_across_chunks():
    x = np.random.default_rng(1).standard_normal((3, gelu.CHUNK - 5)).astype("f4")
    assert np.array_equal(gelu.erf_(x.copy())[2], gelu.erf_(x[2].copy()))


def test_attention_in_blocks_of_queries(small, monkeypatch):
    whole = opened(small).hidden(IDS)
    monkeypatch.setattr(forward, "QUERIES", 7)
    assert relative(opened(small).hidden(IDS), whole) < LIMIT


# what is refused


def complaint(call) -> CgptError:
    with pytest.raises(CgptError) as caught:
        call()
    return caught.value


def test_unknown_heads_are_asked_for(small, tmp_path):
    (tmp_path / "m.bin").write_bytes((small / "pytorch_model.bin").read_bytes())
    error = complaint(lambda: opened(tmp_path / "m.bin"))
    assert isinstance(error, BadRequest)
    assert "config.json" in error.hint
    assert "--heads" in error.hint
    error = complaint(lambda: opened(tmp_path / "m.bin", heads=6))
    assert "--activation" in error.hint
    model = opened(tmp_path / "m.bin", heads=6, activation="gelu")
    assert relative(model.hidden(IDS), opened(small).hidden(IDS)) < 1e-6
    assert "divide" in complaint(lambda: opened(tmp_path / "m.bin", heads=7)).message


def test_a_config_above_the_folder_counts_unless_it_is_of_another_model(small, tmp_path):
    path = as_kind(small, "parameters", tmp_path / "out")
    assert opened(path).hyper.n_head == 6
    content = json.loads((small / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(content | {"n_layer": 7}))
    assert "heads" in complaint(lambda: opened(path)).message


@pytest.mark.parametrize(
    "config",
    [
        {"activation_function": "relu"},
        {"activation_function": 3},
        {"add_cross_attention": True},
        {"position_embedding_type": "alibi"},
        {"scale_attn_weights": "yes"},
        {"layer_norm_epsilon": "small"},
        {"reorder_and_upcast_attn": 1.5},
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused(tmp_path, config):
    folder = write(tmp_path, SMALL, **config)
    error = complaint(lambda: opened(folder))
    assert isinstance(error, Unsupported)
    assert str(next(iter(config.values()))) in error.message


def test_scaled_models_and_misfits_are_refused(small, tmp_path):
    folder = write(tmp_path / "scaled", SMALL, mup_embeddings_scale=10.0)
    assert "muP" in complaint(lambda: opened(folder)).message
    state = torch.load(small / "pytorch_model.bin", weights_only=True)
    del state["transformer.h.1.mlp.c_fc.bias"]
    torch.save(state, tmp_path / "m.bin")
    (tmp_path / "config.json").write_bytes((small / "config.json").read_bytes())
    assert "h.1.mlp.c_fc.bias: missing" in complaint(lambda: opened(tmp_path / "m.bin")).message
    torch.save({"a": torch.zeros(3)}, tmp_path / "m.bin")
    message = complaint(lambda: opened(tmp_path / "m.bin")).message
    assert "config.json describes a gpt2 model, but the tensors are not those of one" in message


def test_an_untied_head_that_is_not_there(tmp_path):
    folder = write(tmp_path, SMALL, "hf", tie_word_embeddings=False)
    assert "lm_head" in complaint(lambda: opened(folder)).message


@pytest.mark.parametrize(
    ("ids", "said"),
    [([[]], "no tokens"), ([[1, 512]], "512"), ([[-1]], "-1"), ([[0] * 161], "160 positions")],
)
def test_ids_are_checked(small, ids, said):
    assert said in complaint(lambda: opened(small).next_logits(ids)).message


def test_no_more_than_the_cache_holds(small):
    model = opened(small)
    cache = model.cache(1, 10)
    model.next_logits(IDS[:1, :9], cache)
    assert "10 positions" in complaint(lambda: model.next_logits(IDS[:1, :2], cache)).message


def test_the_torch_engine_needs_torch(small, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "cgpt_convert.inference.backend_torch", raising=False)
    error = complaint(lambda: opened(small, "torch"))
    assert "pip install" in error.hint

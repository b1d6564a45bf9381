"""What a model becomes as GGUF, what is refused, and the way back."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from cgpt_convert.architectures.known_models import find_model
from cgpt_convert.core.errors import BadRequest, CgptError, Unsupported
from cgpt_convert.formats.gguf import writer
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.inference.model import Model
from cgpt_convert.plan import Field
from cgpt_convert.targets.hf.model_card import Card, read_card
from cgpt_convert.targets.llama_cpp import export, restore_hf
from cgpt_convert.targets.llama_cpp.gguf_metadata import size_label
from cgpt_convert.targets.model_targets import MODEL_TARGETS, ModelRequest, plan_model
from cgpt_convert.targets.selection import TensorSelection, select
from cgpt_convert.tensors.dtypes import FLOAT32
from tests.helpers import llama_model, vendor
from tests.helpers.known_models import GPT2, HEAD, bare, known
from tests.helpers.render import dense, render, tensor_bytes, write
from tests.helpers.render import request as request_of
from tests.helpers.running import run

SMALL = llama_model.SHAPE
QUANTIZED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return llama_model.write(tmp_path_factory.mktemp("model"))


def opened(path):
    checkpoint = open_checkpoint(path)
    return checkpoint, select(checkpoint, TensorSelection(tied="copy")).tensors


def planned(path, dtype="keep", **rest):
    checkpoint, tensors = opened(path)
    return plan_gguf(checkpoint, tensors, dtype, **rest)


def plan_gguf(checkpoint, tensors, dtype, **rest):
    model = ModelRequest(checkpoint, tensors, "m.gguf", dtype, **rest)
    return plan_model(MODEL_TARGETS["gguf"], model)


def written(path, folder, dtype="keep", **rest):
    write(render(planned(path, dtype, **rest).plans), folder)
    return writer.read(str(folder / "m.gguf"))


def fields(made):
    return {field.key: field.value for field in made.request.fields}


def types(made):
    return {tensor.name: tensor.dtype.name for tensor in made.request.tensors}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", *QUANTIZED])
def test_what_stays_float32(model, dtype):
    kinds = types(planned(model, dtype))
    for name, kind in kinds.items():
        if name == "token_embd.weight":
            assert kind == ("q8_0" if dtype in QUANTIZED else dtype)
        elif name.startswith("blk.") and name.endswith(".weight") and "_norm" not in name:
            assert kind == dtype
        else:
            assert kind == "float32"


def test_keep_keeps_what_the_weights_are(tmp_path):
    state = {
        name: tensor if name.endswith("bias") else tensor.half()
        for name, tensor in vendor.state_dict(SMALL).items()
    }
    llama_model.write_tokenizer(tmp_path)
    vendor.write_config(SMALL, tmp_path)
    made = planned(vendor.save(state, tmp_path / "pytorch_model.bin"))
    kinds = types(made)
    assert kinds["blk.0.ffn_up.weight"] == "float16"
    assert kinds["output_norm.weight"] == kinds["position_embd.weight"] == "float32"
    assert fields(made)["general.file_type"] == 1


def test_types_that_gguf_has_not_are_widened():
    found = known_model({"wte.weight": "float8_e4m3fn", "h.0.mlp.c_fc.weight": "float64"})
    kinds = {tensor.name: tensor.dtype.name for tensor in request(found)[0].tensors}
    assert kinds["token_embd.weight"] == kinds["blk.0.ffn_up.weight"] == "float32"


def known_model(changed):
    """Tensors of the first Cerebras-GPT, some of another type."""
    state = bare_model("cerebras-gpt-111m")
    for name, dtype in changed.items():
        full = f"transformer.{name}"
        state |= bare({full: state[full].shape}, dtype)
    return state


def bare_model(name):
    """All tensors of a known model but the tied head, without bytes."""
    shapes = GPT2.shapes(find_model(name).sizes)
    return bare({each: shape for each, shape in shapes.items() if each != HEAD})


def request(tensors, dtype="keep", config=None, tokenizer=None):
    found = export.recognised("m.bin", list(tensors.values()), config)
    source = export.ModelDescription("m.bin", config, tokenizer)
    return export.request("m.gguf", found, list(tensors.values()), dtype, source)


@pytest.mark.parametrize(
    ("name", "label"),
    [("cerebras-gpt-111m", "111M"), ("cerebras-gpt-1.3b", "1.3B"), ("cerebras-gpt-13b", "13B")],
)
def test_fields_of_a_known_model_need_no_config(name, label):
    made, _lines = request(bare_model(name), "q8_0")
    values = {field.key: field.value for field in made.fields}
    expected = find_model(name)
    assert values["general.name"] == f"shape of {expected.title}"
    assert values["general.size_label"] == label
    assert "general.license" not in values
    assert values["gpt2.attention.head_count"] == expected.n_head
    assert values["gpt2.attention.layer_norm_epsilon"] == 1e-5
    assert values["gpt2.context_length"] == 2048
    assert values["gpt2.feed_forward_length"] == 4 * values["gpt2.embedding_length"]
    assert values["gpt2.vocab_size"] == 50257
    assert values["tokenizer.ggml.model"] == "none"


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        ("float32", 0),
        ("float16", 1),
        ("q4_0", 2),
        ("q4_1", 3),
        ("q8_0", 7),
        ("q5_0", 8),
        ("q5_1", 9),
        ("bfloat16", 32),
    ],
)
def test_the_file_type_is_that_of_the_matrices(dtype, number):
    made, _lines = request(bare_model("cerebras-gpt-256m"), dtype)
    assert {f.key: f.value for f in made.fields}["general.file_type"] == number


@pytest.mark.parametrize("number", [999, 1000, 396_800, 999_999, 1_000_001, 12_853_386_240, 2e12])
def test_size_labels_are_the_librarys(number):
    from gguf.utility import size_label as theirs

    assert size_label(number) == theirs(number, number, 0, 0)


def test_the_vocabulary_is_padded_to_the_models(model):
    values = fields(planned(model))
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert tokens[:261] == tuple(llama_model.vocabulary())
    assert tokens[261:] == tuple(f"[PAD{number}]" for number in range(261, 512))
    assert kinds == (1,) * 260 + (3,) + (5,) * 251
    assert values["tokenizer.ggml.merges"] == llama_model.MERGES
    assert values["tokenizer.ggml.bos_token_id"] == llama_model.END_ID


def test_a_tied_head_is_written_once(model):
    made = planned(model)
    assert "output.weight" not in types(made)
    assert "lm_head.weight equals the token embedding and is not written" in made.lines


@pytest.mark.parametrize("same", [True, False])
def test_a_head_of_its_own_is_written_if_it_differs(tmp_path, same):
    state = vendor.state_dict(SMALL)
    state["lm_head.weight"] = state["lm_head.weight"] + (0 if same else 1)
    llama_model.write(tmp_path)
    vendor.save(state, tmp_path / "pytorch_model.bin")
    kinds = types(planned(tmp_path / "pytorch_model.bin", "q4_0"))
    assert ("output.weight" in kinds) is not same
    if not same:
        assert (kinds["output.weight"], kinds["token_embd.weight"]) == ("q8_0", "q4_0")


def test_both_layouts_give_the_same_bytes(tmp_path):
    """The same values under the vendor's names and order, and under transformers'."""
    state = vendor.state_dict(SMALL)
    plain = {
        name.removeprefix("transformer."): tensor.contiguous()
        for name, tensor in state.items()
        if name != "lm_head.weight"
    }
    found = []
    for number, each in enumerate((state, plain)):
        folder = tmp_path / str(number)
        llama_model.write(folder)
        made = planned(vendor.save(each, folder / "pytorch_model.bin"), "q8_0")
        found.append({t.name: tensor_bytes(t) for t in made.request.tensors})
    assert found[0] == found[1]


def test_rows_that_are_no_blocks_are_float16(tmp_path):
    shape = SMALL._replace(n_embd=48, n_inner=192, n_head=4)
    made = planned(llama_model.write(tmp_path, shape=shape), "q5_0")
    kinds = types(made)
    assert kinds["blk.0.attn_qkv.weight"] == kinds["token_embd.weight"] == "float16"
    assert kinds["blk.0.ffn_down.weight"] == "q5_0"  # whose rows are of 192
    assert any("rows of 48 elements cannot be divided into" in line for line in made.lines)


# Refusals


def refused(match, *arguments, kind: type[CgptError] = Unsupported, **rest):
    with pytest.raises(kind, match=match) as caught:
        planned(*arguments, **rest)
    return caught.value


def test_without_a_tokenizer_it_says_what_to_do(model):
    for name in ("vocab.json", "merges.txt"):
        assert (model.parent / name).exists()
    lone = model.parent / "alone"
    lone.mkdir()
    vendor.write(SMALL, lone)
    vendor.write_config(SMALL, lone)
    match = "no tokenizer for the model's 512 tokens"
    error = refused(match, lone / "pytorch_model.bin", kind=BadRequest)
    assert "--tokenizer DIR" in error.hint
    assert "--no-vocab" in error.hint
    assert fields(planned(lone / "pytorch_model.bin", tokenizer=str(model.parent)))
    bare_file = planned(lone / "pytorch_model.bin", vocabulary=False)
    assert "tokenizer.ggml.tokens" not in fields(bare_file)


def test_without_heads_it_says_what_to_do(tmp_path):
    vendor.write(SMALL, tmp_path)
    error = refused("attention heads", tmp_path / "pytorch_model.bin", vocabulary=False)
    assert "config.json" in error.hint


def test_other_architectures_are_refused(tmp_path):
    vendor.save({"w": torch.zeros(2)}, tmp_path / "w.bin")
    error = refused("GGUF output is not supported for these tensors", tmp_path / "w.bin")
    assert "supported: gpt2" in error.hint
    assert "--to safetensors" in error.hint


def test_every_misfit_is_named(tmp_path):
    state = vendor.state_dict(SMALL)
    del state["transformer.ln_f.bias"]
    state["transformer.extra"] = torch.zeros(1)
    vendor.save(state, tmp_path / "w.bin")
    error = refused("2 differences", tmp_path / "w.bin")
    assert "ln_f.bias: missing" in error.message
    assert "extra: unexpected" in error.message


@pytest.mark.parametrize(
    "config",
    [
        {"activation_function": "relu"},
        {"activation_function": "quick_gelu"},
        {"activation_function": "gelu_10"},
        {"activation_function": 3},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"layer_norm_epsilon": -1},
        {"layer_norm_epsilon": "small"},
        {"mup_embeddings_scale": 10},
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, config):
    path = llama_model.write(tmp_path, **config)
    with pytest.raises(Unsupported):
        planned(path)


def test_an_exact_gelu_is_told(model, tmp_path):
    assert any("tanh" in line for line in planned(model).lines)
    tanh = llama_model.write(tmp_path, activation_function="gelu_new")
    assert not any("tanh" in line for line in planned(tanh).lines)


# The way back


def originals(path):
    """The weights under canonical names, as float32 arrays."""
    return {
        name: tensor.numpy()
        for name, tensor in open_checkpoint(path).items()
        if not name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight"))
    }


def test_names_and_layout_are_undone(model, tmp_path):
    back = restore_hf.undo(written(model, tmp_path))
    wanted = originals(model)
    assert list(back) == list(wanted)
    for name, array in wanted.items():
        assert back[name].name == name
        assert np.array_equal(back[name].numpy(), array)
    found = known(back, restore_hf.config(back))
    assert (found.n_head, found.misfits, found.head) == (SMALL.n_head, (), "absent")


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_blocks_come_back_as_numbers(model, tmp_path, dtype):
    back = restore_hf.undo(written(model, tmp_path, dtype))
    assert {tensor.dtype.name for tensor in back.values()} == {"float32"}
    for name, array in originals(model).items():
        spread = max(np.abs(array).max(), 1e-6)
        assert np.abs(back[name].numpy() - array).max() <= spread / (7 if "4" in dtype else 15)


def test_there_and_back_and_there_again_is_the_same_file(model, tmp_path):
    for dtype in ("float32", "float16", "q8_0", "q4_0"):
        folder = tmp_path / dtype
        first = written(model, folder, dtype)
        undone = restore_hf.undo(first)
        tensors = select(undone, TensorSelection(tied="copy")).tensors
        again = render(plan_gguf(undone, tensors, dtype).plans)["m.gguf"]
        assert again == (folder / "m.gguf").read_bytes()


@pytest.mark.parametrize("dtype", ["keep", "float16", "bfloat16", "q8_0", "q4_0"])
def test_a_gguf_is_written_again_as_from_its_source(model, tmp_path, dtype):
    first, second, direct = (tmp_path / f"{name}.gguf" for name in ("first", "second", "direct"))
    words = ("--no-proof", "--dtype", dtype)
    assert run("convert", model, "-o", first, "--no-proof").code == 0
    assert run("convert", model, "-o", direct, *words).code == 0
    assert run("convert", first, "-o", second, "--verify", *words).code == 0
    assert second.read_bytes() == direct.read_bytes()
    assert run("convert", second, "-o", first, "--no-proof", "--overwrite").code == 0
    assert first.read_bytes() == direct.read_bytes()  # `keep` keeps blocks


@pytest.mark.parametrize("before", ["float32", "q8_0"])
@pytest.mark.parametrize("after", ["keep", "float16", "q8_0", "q4_0"])
def test_a_gguf_written_again_is_verified(model, tmp_path, before, after):
    """Its provenance metadata, too."""
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    assert run("convert", model, "-o", first, "--dtype", before).code == 0
    assert run("convert", first, "-o", second, "--dtype", after, "--verify").code == 0
    for words in ((first, second), (second,), (second, second)):
        result = run("verify", *words)
        assert result.code == 0, result.out
    lock = tmp_path / "lock.json"
    assert run("lock", first, "-o", lock).code == 0
    same = after in ("keep", before)
    assert run("verify", second, "--lock", lock).code == (0 if same else 1)
    assert run("diff", first, second).code == (0 if same else 1)


def test_the_fields_of_a_gguf_are_kept(model, tmp_path):
    """Those of other programs, too; the digests of what was there before are not."""
    request = planned(model).request
    other = Field("x.y", "int64", (1, 2))
    made = dataclasses.replace(request, fields=(*request.fields, other))
    write(render(writer.plan(made)), tmp_path)
    path, out = tmp_path / "m.gguf", tmp_path / "out.gguf"
    done = run("convert", path, "-o", out, "--dtype", "float16")
    assert done.code == 0, done.err
    before, after = (fields_of(each) for each in (path, out))
    assert after.pop("general.file_type").value == 1
    assert before.pop("general.file_type").value == 0
    ours = {key for key in after if key.startswith("cgpt_convert.")}
    assert {key: after[key] for key in after if key not in ours} == {
        key: value for key, value in before.items() if not key.startswith("cgpt_convert.")
    }
    assert ours >= {"cgpt_convert.tensors", "cgpt_convert.activation_function"}
    assert run("verify", path, out).code == run("verify", out).code == 0
    assert run("convert", out, "-o", path, "--no-vocab", "--overwrite").code == 0
    left = {key for key in fields_of(path) if key.startswith("tokenizer.")}
    assert left == {"tokenizer.ggml.model"}
    words = ("--tokenizer", model.parent, "--overwrite")
    assert run("convert", path, "-o", out, *words).code == 0
    assert fields_of(out)["tokenizer.ggml.tokens"] == before["tokenizer.ggml.tokens"]


def test_a_gguf_of_another_architecture_is_not_written_again(tmp_path):
    tensor = dense("blk.0.attn_q.weight", "float32", (2, 32), bytes(2 * 32 * 4))
    made = writer.plan(request_of("m.gguf", tensor, metadata={"general.architecture": "llama"}))
    write(render(made), tmp_path)
    done = run("convert", tmp_path / "m.gguf", "-o", tmp_path / "x.gguf")
    assert done.code == 3
    assert "the architecture 'llama'" in done.err


def fields_of(path):
    return {field.key: field for field in writer.fields(writer.read(str(path)))}


def test_what_the_file_says_of_the_model(model, tmp_path):
    checkpoint = written(model, tmp_path)
    assert restore_hf.config(checkpoint) == {
        "model_type": "gpt2",
        "n_layer": 3,
        "n_positions": 128,
        "n_embd": 96,
        "n_inner": 384,
        "n_head": 6,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu",
    }
    found = restore_hf.tokenizer(checkpoint)
    assert found is not None
    assert found.tokens == tuple(llama_model.vocabulary())
    assert found.merges == llama_model.MERGES
    assert (found.bos, found.eos, found.special) == (260, 260, frozenset({260}))
    assert json.loads(found.files["vocab.json"]) == llama_model.vocabulary()
    assert found.files["merges.txt"].decode().splitlines()[1:] == list(llama_model.MERGES)


def test_another_architecture_keeps_its_names(tmp_path):
    tensor = dense("blk.0.attn_q.weight", "q8_0", (2, 32), bytes(2 * 34))
    made = writer.plan(request_of("m.gguf", tensor, metadata={"general.architecture": "x"}))
    write(render(made), tmp_path)
    checkpoint = writer.read(str(tmp_path / "m.gguf"))
    back = restore_hf.undo(checkpoint)
    assert back["blk.0.attn_q.weight"].dtype == FLOAT32
    assert back["blk.0.attn_q.weight"].shape == (2, 32)
    assert restore_hf.config(checkpoint) is None
    assert restore_hf.tokenizer(checkpoint) is None


# Names and licences


CARD = """---
license: {}
language: [en]
model_name: "My model"
---
# A heading
"""


def test_a_shape_is_not_a_name():
    """Random weights of a known shape are not that model, whatever the licence of that model."""
    made, _lines = request(bare_model("cerebras-gpt-111m"), config={"_name_or_path": "x/my-own/"})
    values = {field.key: field.value for field in made.fields}
    assert values["general.name"] == "my-own"
    assert "general.license" not in values


def test_the_model_card_is_believed(tmp_path):
    path = llama_model.write(tmp_path, _name_or_path="some/base")
    (tmp_path / "README.md").write_text(CARD.format("cc-by-4.0"))
    values = fields(planned(path))
    assert (values["general.name"], values["general.license"]) == ("My model", "cc-by-4.0")
    again = restore_hf.card(written(path, tmp_path / "out"))
    assert (again.name, again.license) == ("My model", "cc-by-4.0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "license: mit\n",
        "---\nlicense: mit\n",
        "---\n  license: mit\n---\n",
        "---\nlicense: [mit]\n---\n",
        "---\nlicense: \x1b[31m\n---\n",
        "---\n---\nlicense: mit\n",
        "\x00" * 100,
    ],
)
def test_cards_that_say_no_licence(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert read_card(str(tmp_path)) == Card()


def test_a_folder_is_no_card(tmp_path):
    (tmp_path / "README.md").mkdir()
    assert read_card(str(tmp_path)) == Card()


def test_a_gguf_of_ours_runs_without_config_json(model, tmp_path):
    """The exact GELU, which no field of llama.cpp's tells, is in it."""
    ours, source = Model(written(model, tmp_path)), Model(open_checkpoint(model))
    assert ours.hyper == source.hyper
    ids = [llama_model.IDS]
    assert np.allclose(ours.next_logits(ids), source.next_logits(ids), atol=2e-6)


def test_another_pre_tokenizer_is_not_gpt2s(model, tmp_path):
    """Its regular expression would cut texts otherwise."""
    made = planned(model).request
    changed = [f._replace(value="llama-bpe") if f.key.endswith(".pre") else f for f in made.fields]
    write(render(writer.plan(dataclasses.replace(made, fields=tuple(changed)))), tmp_path)
    assert restore_hf.tokenizer(writer.read(str(tmp_path / "m.gguf"))) is None

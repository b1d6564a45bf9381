"""GPT-2 as trainers save it: behind wrappers' prefixes, and in nanoGPT's layout.

The oracle is torch: transformers' own model, and nanoGPT's forward pass with Linear layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from cgpt_convert import open_checkpoint
from cgpt_convert.inference.model import Model
from tests.helpers.gguf_library import from_gguf
from tests.helpers.running import run

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64}
SIZES |= {"vocab_size": 128, "bos_token_id": 0, "eos_token_id": 0}
IDS = torch.arange(40).mul(37).remainder(128).view(2, 20)

State = dict[str, torch.Tensor]


def spread(state: State) -> State:
    """The tensors, none of which is a constant, so that every one matters."""
    torch.manual_seed(3)
    changed = {
        name: tensor + 0.2 * torch.randn(tensor.shape)
        for name, tensor in state.items()
        if name != "lm_head.weight"
    }
    return changed | {"lm_head.weight": changed["transformer.wte.weight"]}


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    made = GPT2LMHeadModel(GPT2Config(**SIZES))
    made.load_state_dict(spread(made.state_dict()))
    made.eval()
    return made


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def saved(folder: Path, state: Mapping[str, object], **config: Any) -> Path:
    folder.mkdir()
    said = {"model_type": "gpt2", **SIZES, "activation_function": "gelu_new"} | config
    (folder / "config.json").write_text(json.dumps(said))
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def loaded(folder: Path) -> Any:
    """The model, if every tensor of the class came from the folder and none was left over."""
    found: Any = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    model, info = found
    assert not any(info.values()), info
    return model.eval()


def inner(name: str, wrapper: str) -> str:
    """The name as FSDP and activation checkpointing make it: a wrapper around each layer, too."""
    parts = name.split(".")
    at = parts.index("h") + 2 if "h" in parts else 0
    return wrapper + ".".join([*parts[:at], wrapper.rstrip("."), *parts[at:]])


PREFIXES: tuple[str, ...] = ("module.", "_orig_mod.", "net.", "model.", "module._orig_mod.")
PREFIXES += ("base_model.model.", "a.b_c.d0.", "0.", "h.", "model.model.", "_fsdp_wrapped_module.")
PREFIXES += ("transformer.",)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_wrapper_is_stripped(model: GPT2LMHeadModel, tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    check_both(saved(tmp_path / "source", state), tmp_path, model, prefix)


@pytest.mark.parametrize("prefix", ["net.", "transformer.transformer."])
def test_a_wrapped_model_without_head(model: GPT2LMHeadModel, tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: t for name, t in model.transformer.state_dict().items()}
    check_both(saved(tmp_path / "source", state), tmp_path, model, prefix.split(".", maxsplit=1)[0])


def test_a_head_outside_of_the_wrapper(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    state = {f"model.{name}": t for name, t in model.transformer.state_dict().items()}
    state["lm_head.weight"] = model.lm_head.weight.detach() * -2
    source = saved(tmp_path / "source", state)
    assert run("convert", source, "-o", tmp_path / "hf", "--to", "hf").code == 0
    untied = loaded(tmp_path / "hf")
    assert not untied.config.tie_word_embeddings
    assert torch.allclose(logits(untied), -2 * logits(model), atol=1e-4)


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_wrappers_inside_of_names(model: GPT2LMHeadModel, tmp_path: Path, wrapper: str) -> None:
    state = {inner(name, wrapper): tensor for name, tensor in model.state_dict().items()}
    check_both(saved(tmp_path / "source", state), tmp_path, model, wrapper.rstrip("."))


def check_both(source: Path, tmp_path: Path, model: GPT2LMHeadModel, said: str) -> None:
    """The folder and the GGUF hold the model, the command says what it stripped, and it runs."""
    done = run("convert", source, "-o", tmp_path / "hf", "--to", "hf")
    assert (done.code, done.err) == (0, "")
    assert f"the wrapper '{said}" in done.out
    assert torch.allclose(logits(loaded(tmp_path / "hf")), logits(model), atol=1e-5)
    done = run("convert", source, "-o", tmp_path / "m.gguf", "--no-vocab")
    assert (done.code, done.err) == (0, "")
    assert f"the wrapper '{said}" in done.out
    for name, tensor in from_gguf(tmp_path / "m.gguf").items():
        assert torch.equal(tensor, model.state_dict()[name])
    ours = Model(open_checkpoint(source))
    found = torch.from_numpy(ours.logits(ours.hidden(IDS.numpy()).reshape(40, -1)))
    assert torch.allclose(found.view(2, 20, -1), logits(model), atol=1e-4)


@pytest.mark.parametrize("config", [{}, {"model_type": None, "architectures": ["GPT2LMHeadModel"]}])
def test_two_models_in_one_file_are_not_guessed(
    model: GPT2LMHeadModel, tmp_path: Path, config: dict[str, Any]
) -> None:
    both = {f"{p}.{n}": t for p in ("student", "teacher") for n, t in model.state_dict().items()}
    source = saved(tmp_path / "source", both, **config)
    done = run("convert", source, "-o", tmp_path / "hf", "--to", "hf")
    assert done.code == 3
    assert "names begin with student, teacher" in done.err
    assert not (tmp_path / "hf").exists()
    for done in (
        run("convert", source, "-o", tmp_path / "m.gguf"),
        run("generate", source, "--ids", 1),
    ):
        assert (done.code, "names begin with student, teacher" in done.err) == (3, True)
    words = ("convert", source, "-o", tmp_path / "hf", "--to", "hf", "--match", "student.*")
    assert run(*words).code == 0
    assert torch.allclose(logits(loaded(tmp_path / "hf")), logits(model), atol=1e-5)


def test_a_value_head_beside_the_model_is_refused(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    """As trl saves it."""
    state = {f"pretrained_model.{n}": t for n, t in model.state_dict().items()}
    state["v_head.summary.weight"] = torch.zeros(1, 32)
    source = saved(tmp_path / "source", state)
    done = run("convert", source, "-o", tmp_path / "hf", "--to", "hf")
    assert done.code == 3
    assert "pretrained_model, v_head" in done.err


def test_one_tensor_under_two_names_is_refused(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    state = model.state_dict() | {"_orig_mod.transformer.wpe.weight": torch.zeros(64, 32)}
    done = run("convert", saved(tmp_path / "s", state), "-o", tmp_path / "hf", "--to", "hf")
    assert done.code == 3
    assert "a second copy of the model's tensor transformer.wpe.weight" in done.err


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model._orig_mod."])
def test_an_unknown_architecture_behind_torchs_wrappers_is_refused(
    tmp_path: Path, prefix: str
) -> None:
    tensors = {f"{prefix}encoder.layer.{n}.w": torch.zeros(2) for n in range(2)}
    source = saved(tmp_path / "source", tensors, model_type="bert")
    done = run("convert", source, "-o", tmp_path / "hf", "--to", "hf")
    assert done.code == 3
    assert f"torch's wrapper '{prefix.split('.')[-2]}'" in done.err


# nanoGPT


class NanoBlock(nn.Module):
    """A layer of nanoGPT's model.py, whose weights are Linear layers'."""

    def __init__(self, wide: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(wide), nn.LayerNorm(wide)
        self.attn = nn.ModuleDict(
            {"c_attn": nn.Linear(wide, 3 * wide), "c_proj": nn.Linear(wide, wide)}
        )
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(wide, 4 * wide), "c_proj": nn.Linear(4 * wide, wide)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, n = x.shape
        parts = self.attn["c_attn"](self.ln_1(x)).split(n, dim=2)
        q, k, v = (each.view(b, t, self.heads, n // self.heads).transpose(1, 2) for each in parts)
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](y.transpose(1, 2).reshape(b, t, n))
        found: torch.Tensor = x + self.mlp["c_proj"](gelu(self.mlp["c_fc"](self.ln_2(x))))
        return found


class NanoGPT(nn.Module):
    """nanoGPT with tied weights: its names, its layout, its exact GELU."""

    def __init__(self) -> None:
        super().__init__()
        wide, vocabulary = SIZES["n_embd"], SIZES["vocab_size"]
        layers = [NanoBlock(wide, SIZES["n_head"]) for _ in range(SIZES["n_layer"])]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, wide),
                "wpe": nn.Embedding(SIZES["n_positions"], wide),
                "h": nn.ModuleList(layers),
                "ln_f": nn.LayerNorm(wide),
            }
        )
        self.layers = layers  # a plain list, which registers nothing
        self.lm_head = nn.Linear(wide, vocabulary, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        found: torch.Tensor = self.lm_head(self.transformer["ln_f"](x))
        return found


@pytest.fixture(scope="module")
def nano() -> NanoGPT:
    torch.manual_seed(5)
    made = NanoGPT()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return made.eval()


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_linear_weights_are_transposed(nano: NanoGPT, tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in nano.state_dict().items()}
    checkpoint = {"model": state, "iter_num": 7, "model_args": {"n_head": 4}}
    source = saved(tmp_path / "source", checkpoint, activation_function="gelu")
    with torch.no_grad():
        expected = nano(IDS)
    done = run("convert", source, "-o", tmp_path / "hf", "--to", "hf")
    assert (done.code, done.err) == (0, "")
    assert "transposed 8 Linear weights from (out, in) to (in, out)" in done.out
    assert torch.allclose(logits(loaded(tmp_path / "hf")), expected, atol=1e-4)
    assert run("convert", source, "-o", tmp_path / "m.gguf", "--no-vocab").code == 0
    for target, transposed in (("hf", 8), ("m.gguf", 0)):
        done = run("verify", source, tmp_path / target, "--json")
        assert (done.code, done.err) == (0, "")
        assert sum("transpose" in check["detail"] for check in done.json["checks"]) == transposed
        assert run("verify", tmp_path / target).code == 0
        assert run("diff", source, tmp_path / target).code == 0
    theirs = loaded(tmp_path / "hf").state_dict()
    for name, tensor in from_gguf(tmp_path / "m.gguf").items():
        assert torch.equal(tensor, theirs[name])
    for path in (source, tmp_path / "hf"):
        ours = Model(open_checkpoint(path))
        found = torch.from_numpy(ours.logits(ours.hidden(IDS.numpy()).reshape(40, -1)))
        assert math.isclose(float((found.view(2, 20, -1) - expected).abs().max()), 0, abs_tol=1e-4)


def test_weights_partly_transposed_are_refused(nano: NanoGPT, tmp_path: Path) -> None:
    state = dict(nano.state_dict())
    state["transformer.h.1.mlp.c_fc.weight"] = state["transformer.h.1.mlp.c_fc.weight"].t()
    source = saved(tmp_path / "source", state)
    done = run("convert", source, "-o", tmp_path / "hf", "--to", "hf")
    assert done.code == 3
    assert "Linear weight (out, in), not as Conv1D" in done.err
    assert "--exclude" not in done.err


def test_a_model_without_biases_is_refused(nano: NanoGPT, tmp_path: Path) -> None:
    state = {n: t for n, t in nano.state_dict().items() if not n.endswith(".bias")}
    source = saved(tmp_path / "source", state)
    for words in (("-o", tmp_path / "hf", "--to", "hf"), ("-o", tmp_path / "m.gguf")):
        done = run("convert", source, *words)
        assert done.code == 3
        assert "the model has no biases (13 are missing)" in done.err


def test_other_architectures_with_linear_weights_are_not_gpt2(
    nano: NanoGPT, tmp_path: Path
) -> None:
    """gpt_bigcode has nanoGPT's names and shapes, and takes its heads from c_attn otherwise."""
    source = saved(tmp_path / "source", dict(nano.state_dict()), model_type="gpt_bigcode")
    assert run("convert", source, "-o", tmp_path / "m.gguf", "--no-vocab").code == 3
    assert run("generate", source, "--ids", "1,2").code == 3
    done = run("convert", source, "-o", tmp_path / "hf", "--to", "hf")
    assert (done.code, "the architecture is unknown" in done.out) == (0, True)


# What config.json says and the tensors are not


def test_cross_attention_that_is_not_there_is_refused(
    model: GPT2LMHeadModel, tmp_path: Path
) -> None:
    source = saved(tmp_path / "source", model.state_dict(), add_cross_attention=True)
    done = run("convert", source, "-o", tmp_path / "hf", "--to", "hf")
    assert done.code == 3
    assert "config.json has add_cross_attention True" in done.err


def test_a_head_that_config_json_promises_and_is_not_there(
    model: GPT2LMHeadModel, tmp_path: Path
) -> None:
    state = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    source = saved(tmp_path / "source", state, tie_word_embeddings=False)
    for words in (("-o", tmp_path / "hf", "--to", "hf"), ("-o", tmp_path / "m.gguf")):
        done = run("convert", source, *words)
        assert done.code == 3
        assert "the file has no lm_head.weight" in done.err


def test_layers_that_config_json_promises_and_are_not_there(
    model: GPT2LMHeadModel, tmp_path: Path
) -> None:
    state = {n: t for n, t in model.state_dict().items() if ".h.1." not in n}
    source = saved(tmp_path / "source", state)
    for words in (("-o", tmp_path / "hf", "--to", "hf"), ("-o", tmp_path / "m.gguf")):
        done = run("convert", source, *words)
        assert done.code == 3
        assert "config.json has 2 layers, but the file has 1" in done.err


def test_heads_that_do_not_divide_the_width(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", model.state_dict(), n_head=5)
    done = run("convert", source, "-o", tmp_path / "hf", "--to", "hf")
    assert done.code == 3
    assert "config.json has n_head 5, which does not divide the tensors' hidden size" in done.err


VARIANTS = {
    "GPT2ForSequenceClassification": "score.weight",
    "GPT2ForTokenClassification": "classifier.weight",
    "GPT2DoubleHeadsModel": "multiple_choice_head",
    "GPT2ForQuestionAnswering": "qa_outputs.weight",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_other_heads_are_refused(tmp_path: Path, name: str) -> None:
    """The folder would be loaded as a language model without them."""
    sizes: dict[str, Any] = SIZES | {"num_labels": 2, "pad_token_id": 0}
    made = getattr(transformers, name)(GPT2Config(**sizes))
    source = saved(tmp_path / "source", made.state_dict(), architectures=[name])
    for words in (("-o", tmp_path / "hf", "--to", "hf"), ("-o", tmp_path / "m.gguf")):
        done = run("convert", source, *words)
        assert done.code == 3
        assert VARIANTS[name] in done.err
        assert (
            f"config.json names the class {name}, but only GPT2LMHeadModel is supported" in done.err
        )
        assert "--exclude" not in done.err


def test_numbers_are_not_said_to_be_quantized(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    said = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    source = saved(tmp_path / "source", model.state_dict(), quantization_config=said)
    done = run("convert", source, "-o", tmp_path / "hf", "--to", "hf")
    assert "config.json: removed quantization_config" in done.out
    assert torch.equal(logits(loaded(tmp_path / "hf")), logits(model))


def test_sizes_under_keys_that_transformers_does_not_read(
    model: GPT2LMHeadModel, tmp_path: Path
) -> None:
    source = saved(tmp_path / "source", model.state_dict(), n_positions=None, n_ctx=64)
    assert run("convert", source, "-o", tmp_path / "hf", "--to", "hf").code == 0
    assert loaded(tmp_path / "hf").config.n_positions == 64


CODE: dict[str, Any] = {
    "auto_map": {"AutoModelForCausalLM": "m.Model"},
    "_attn_implementation_internal": "someone/kernel",
    "_attn_implementation": "someone/kernel",
    "custom_pipelines": {"x": {"impl": "m.Pipeline"}},
    "trust_remote_code": True,
    "text_config": {"auto_map": {}, "deeper": [{"_experts_implementation_internal": "x"}]},
}


@pytest.mark.parametrize("known", [True, False])
def test_keys_that_load_code_are_dropped(
    model: GPT2LMHeadModel, tmp_path: Path, *, known: bool
) -> None:
    state = model.state_dict() if known else {"w": torch.zeros(2)}
    kind = "gpt2" if known else "other"
    source = saved(tmp_path / "source", state, model_type=kind, kept={"a": [1, None]}, **CODE)
    settings = {"auto_map": {"AutoTokenizer": ["t.T", None]}, "model_max_length": 64}
    (source.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    (source.parent / "generation_config.json").write_text('{"custom_generate": "a/b", "top_k": 2}')
    done = run("convert", source, "-o", tmp_path / "hf", "--to", "hf", "--json")
    assert done.code == 0
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        text = (tmp_path / "hf" / name).read_text()
        for key in ("auto_map", "implementation", "custom_", "trust_remote_code"):
            assert key not in text
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["kept"] == {"a": [1, None]}
    assert config["text_config"] == {"deeper": [{}]}
    said = "\n".join(done.json["model"])
    for path in (*CODE, "text_config.deeper.0._experts_implementation_internal"):
        assert path in said
    assert "tokenizer_config.json: removed auto_map" in said

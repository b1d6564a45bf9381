"""config.json: read, doubted, and searched for signs of muP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Model

from cgpt_convert.architectures.hf_config_check import check_config, read_config
from cgpt_convert.architectures.known_models import find_model
from cgpt_convert.core.errors import BadRequest, Malformed, Unsupported
from tests.helpers import vendor
from tests.helpers.known_models import (
    SHAPES,
    bare,
    known,
    of_transformers,
    opened,
    small,
    transformers_config,
)

# CerebrasGPT-111_muP/config.json of cerebras/Cerebras-GPT-Intermediate
MUP = {
    "attn_pdrop": 0.0,
    "scale_attn_weights": True,
    "n_inner": 3072,
    "n_embd": 768,
    "n_positions": 2048,
    "mup_embeddings_scale": 10,
    "activation_function": "gelu",
    "n_head": 12,
    "n_layer": 10,
    "position_embedding_type": "learned",
    "mup_scale_qk_dot_by_d": True,
    "tie_word_embeddings": True,
    "vocab_size": 50257,
    "alibi_scaling": None,
    "model_type": "btlm",
}


TRUE_CONFIG = {
    "model_type": "gpt2",
    "n_layer": 10,
    "n_embd": 768,
    "n_head": 12,
    "n_inner": 3072,
    "n_positions": 2048,
    "vocab_size": 50257,
    "activation_function": "gelu",
    "tie_word_embeddings": True,
    "layer_norm_epsilon": 1e-05,
    "architectures": ["GPT2Model"],
}


def test_a_true_config_is_not_doubted() -> None:
    for config in (TRUE_CONFIG, {}, TRUE_CONFIG | {"n_inner": None}, MUP):
        assert check_config(known(small(), config), config) == []
    for name, shape in SHAPES.items():
        config = transformers_config(shape).to_dict()
        config["activation_function"] = find_model(name).activation
        found = known(of_transformers(name), config)
        assert check_config(found, config) == []
        assert found.shape_of is find_model(name)
        assert found.refusal == ""


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"n_layer": 12}, "n_layer 12, but the tensors have 10"),
        ({"num_hidden_layers": 12}, "num_hidden_layers 12, but the tensors have 10"),
        ({"n_ctx": 1024}, "n_ctx 1024, but the tensors have 2048"),
        ({"vocab_size": "many"}, "vocab_size 'many', but the tensors have 50257"),
        ({"vocab_size": 50257.0}, "vocab_size 50257.0, but the tensors have 50257"),
        ({"n_layer": True}, "n_layer True, but the tensors have 10"),
        ({"model_type": "bert"}, "model_type 'bert', but the tensors are those of gpt2"),
        ({"n_head": 7}, "n_head 7, which does not divide the tensors' hidden size 768"),
        ({"n_head": 0}, "n_head 0, which is not a positive integer"),
        ({"n_head": 16}, "n_head 16, but cerebras-gpt-111m, which has these shapes, has 12"),
        (
            {"activation_function": "gelu_new"},
            "activation_function 'gelu_new', but cerebras-gpt-111m, which has these shapes,",
        ),
    ],
)
def test_lies_of_config_json_are_told(lie: dict[str, Any], said: str) -> None:
    config = TRUE_CONFIG | lie
    lines = check_config(known(small(), config), config)
    assert any(line.startswith(f"config.json has {said}") for line in lines)


def test_a_missing_n_inner_means_four_times_the_width() -> None:
    narrow = vendor.TINY._replace(n_inner=100)
    with torch.device("meta"):
        state = GPT2Model(transformers_config(narrow)).state_dict()
    found = known(bare({name: tuple(tensor.shape) for name, tensor in state.items()}))
    assert check_config(found, {}) == [
        "config.json has no n_inner (default 4*n_embd = 256), but the tensors have 100"
    ]


def test_untied_heads_that_are_not_there_are_told() -> None:
    found = known(of_transformers("gpt2", headless=True))
    assert check_config(found, {"tie_word_embeddings": False}) == [
        "config.json has tie_word_embeddings false, but the head is absent"
    ]
    assert check_config(known(small()), {"tie_word_embeddings": False}) == []


@pytest.mark.parametrize(
    ("name", "known_by_name"),
    [
        ("cerebras/Cerebras-GPT-111M", True),
        ("/home/x/cerebras-gpt-111m/", True),
        ("cerebras/Cerebras-GPT-256M", False),
        ("my-own", False),
        ("", False),
        (None, False),
        (7, False),
    ],
)
def test_a_model_is_what_config_json_names(name: object, *, known_by_name: bool) -> None:
    found = known(small(), {"_name_or_path": name})
    assert found.shape_of is find_model("cerebras-gpt-111m")
    assert (found.identity is found.shape_of) == known_by_name


def test_heads_of_config_json_are_believed_before_the_table() -> None:
    found = known(small(), {"n_head": 16})
    assert (found.n_head, found.n_head_source, found.shape_of) == (16, "config.json", None)
    found = known(small(), {"n_head": 7})  # cannot be: 768 is no multiple
    assert (found.n_head, found.n_head_source) == (12, "cerebras-gpt-111m")


def test_config_is_read_from_its_folder(tmp_path: Path) -> None:
    assert read_config(tmp_path) is None
    vendor.write_config(vendor.TINY, tmp_path)
    config = read_config(tmp_path)
    assert config is not None
    assert (config["n_head"], config["layer_norm_epsilon"]) == (4, 1e-05)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"n_layer": 1' + b"0" * 5000 + b"}"]
)
def test_configs_that_are_no_objects_are_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(Malformed, match=r"config\.json"):
        read_config(tmp_path)


def test_huge_configs_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(Unsupported, match="16,777,217"):
        read_config(tmp_path)


def test_configs_that_are_no_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(BadRequest, match=r"config\.json"):
        read_config(tmp_path)


def test_mup_is_refused() -> None:
    found = known(small(), MUP)
    assert not found.misfits
    assert found.shape_of is find_model("cerebras-gpt-111m")  # shapes and heads are the same
    assert "mup_embeddings_scale 10" in found.refusal
    assert "mup_scale_qk_dot_by_d True" in found.refusal


@pytest.mark.parametrize(
    "config",
    [
        # Cerebras/modelzoo, gpt3/configs/Cerebras_GPT/111m_mup.yaml
        {"embeddings_scale": 10},
        {"output_logits_scale": 0.3333333333333333},
        {"scale_qk_dot_by_d": True},
        {"width_scale": 0.33},
        {"mup_base_width": 256},
        {"_name_or_path": "models/111m_mup"},
        {"_name_or_path": "cerebras/CerebrasGPT-111_muP"},
    ],
)
def test_any_sign_of_mup_is_enough(config: dict[str, Any]) -> None:
    assert known(small(), config).refusal


@pytest.mark.parametrize(
    "config",
    [
        # configuration_btlm.py's defaults
        {"mup_width_scale": 1.0, "mup_embeddings_scale": 1.0, "mup_output_alpha": 1.0},
        {"mup_scale_qk_dot_by_d": False, "embeddings_scale": None},
        {"_name_or_path": "the-muppets"},
        {"_name_or_path": None},
        {"_name_or_path": ["x_mup"]},
    ],
)
def test_what_changes_nothing_is_no_mup(config: dict[str, Any]) -> None:
    assert known(small(), config).refusal == ""


def test_mup_is_told_from_the_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "CerebrasGPT-111_muP" / "checkpoint_4866"
    folder.parent.mkdir()
    found = known(opened(vendor.write(vendor.TINY, folder)))
    assert "CerebrasGPT-111_muP" in found.refusal
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    assert known(opened(vendor.write(vendor.TINY, below / "c"))).refusal == ""

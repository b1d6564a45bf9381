"""GPT-2 as a transformers folder: its class, and the keys of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cgpt_convert.architectures.gpt2.defaults import ACTIVATION, EPSILON
from cgpt_convert.architectures.recognised_names import Recognised

CLASS = "GPT2LMHeadModel"  # the class in transformers that includes the head
RESHAPING = ("add_cross_attention", "pruned_heads")  # keys that give the class other parameters


def assumed(recognised: Recognised) -> dict[str, Any]:
    """Return the config.json entries to assume if nothing is configured."""
    model = recognised.shape_of
    return {
        "activation_function": model.activation if model else ACTIVATION,
        "layer_norm_epsilon": model.layer_norm_epsilon if model else EPSILON,
    }


def required(sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return the keys that a config.json must have in addition to the sizes."""
    return {"n_ctx": sizes["n_positions"]}  # llama.cpp's converter requires it

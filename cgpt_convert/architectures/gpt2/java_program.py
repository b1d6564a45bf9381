"""GPT-2 in demo-gpt-java: the models that its properties can describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cgpt_convert.architectures.gpt2 import defaults
from cgpt_convert.architectures.gpt2.defaults import ACTIVATION, EPSILON
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.core.text import printable

_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # the program computes this function
_EXACT = "gelu"

with_defaults = defaults.with_defaults


def usual_epsilon(recognised: Recognised) -> float:
    """Return the epsilon of the layer norms if nothing is configured."""
    return recognised.shape_of.layer_norm_epsilon if recognised.shape_of else EPSILON


def refusal(recognised: Recognised, config: Mapping[str, Any]) -> str:
    """Return why the program would compute the model incorrectly, or ""."""
    if config.get("scale_attn_by_inverse_layer_idx"):
        return "the model scales attention scores by the layer number"
    activation = _activation(recognised, config)
    if activation not in (*_TANH, _EXACT):
        return f"the activation is {printable(activation)}; the program supports GELU only"
    return ""


def notes(recognised: Recognised, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each difference between the program's model and this one."""
    if _activation(recognised, config) == _EXACT:
        yield "the model uses exact GELU; the program computes the tanh approximation"
    tokens, usual = recognised.sizes["vocab_size"], recognised.architecture.vocabulary
    if usual is None or tokens != usual.size:
        yield f"the program has only GPT-2's vocabulary; this model has {tokens:,} tokens"


def _activation(recognised: Recognised, config: Mapping[str, Any]) -> str:
    usual = recognised.shape_of.activation if recognised.shape_of else ACTIVATION
    return str(config.get("activation_function", usual))

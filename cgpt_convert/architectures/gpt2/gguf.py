"""GPT-2 in llama.cpp: header values, and differences in the computation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from cgpt_convert.architectures.activations import ACTIVATIONS, ERF
from cgpt_convert.architectures.gpt2 import defaults
from cgpt_convert.architectures.gpt2.defaults import ACTIVATION, EPSILON
from cgpt_convert.architectures.hf_config_check import CONFIG
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.text import printable

_PLAIN = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}

with_defaults = defaults.with_defaults


def activation(recognised: Recognised, config: Mapping[str, Any]) -> str:
    """Return the configured activation, else that of the known model of these shapes or GPT-2."""
    said = config.get("activation_function")
    if isinstance(said, str):
        return said
    return recognised.shape_of.activation if recognised.shape_of else ACTIVATION


def epsilon(recognised: Recognised, config: Mapping[str, Any], path: str) -> float:
    """Return the epsilon of the layer norms. Raises Unsupported for an invalid value."""
    known = recognised.shape_of.layer_norm_epsilon if recognised.shape_of else EPSILON
    said = config.get("layer_norm_epsilon", known)
    if type(said) not in (int, float) or not 0 < said < math.inf:
        raise Unsupported(
            f"{CONFIG} has layer_norm_epsilon {said!r:.80}, which is not a positive number",
            where=path,
            hint=f"fix {CONFIG}",
        )
    return float(said)


def check_settings(config: Mapping[str, Any], path: str) -> None:
    """Raise Unsupported for settings other than those of llama.cpp's src/models/gpt2.cpp.

    It computes GELU by tanh and scales scores by the head size only.
    """
    wrong = [key for key, plain in _PLAIN.items() if config.get(key, plain) is not plain]
    said = config.get("activation_function")
    if said is not None and not (isinstance(said, str) and said in ACTIVATIONS):
        wrong.append("activation_function")
    if wrong:
        shown = ", ".join(f"{key} {config[key]!r:.40}" for key in wrong)
        raise Unsupported(
            f"{CONFIG} has {printable(shown)}, which llama.cpp does not support for GPT-2",
            where=path,
            hint="use --to safetensors or --to hf to write the weights for other programs",
        )


def notes(recognised: Recognised, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each difference between llama.cpp's computation and the model's."""
    if ACTIVATIONS.get(activation(recognised, config)) == ERF:
        yield (
            "the model uses exact GELU; llama.cpp computes the tanh approximation, so its logits "
            "differ by about 1e-4"
        )

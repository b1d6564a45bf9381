"""Hyperparameters of GPT-2 that tensors do not determine: heads, activation, scales.

Every option is either supported or rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cgpt_convert.architectures.activations import ACTIVATIONS, ERF
from cgpt_convert.architectures.gpt2.defaults import ACTIVATION, EPSILON
from cgpt_convert.architectures.hf_config_check import CONFIG
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.core.errors import BadRequest, Unsupported
from cgpt_convert.core.text import printable


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """GPT-2's sizes, named as in config.json, and its options."""

    n_layer: int
    n_embd: int
    n_head: int
    n_inner: int
    n_positions: int
    vocab_size: int
    activation: str  # ERF or TANH
    layer_norm_epsilon: float
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False

    @property
    def d_head(self) -> int:
        """The size of one head."""
        return self.n_embd // self.n_head

    def score_scale(self, layer: int) -> float:
        """Return the factor of the attention scores of that layer."""
        scale = self.d_head**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale


def as_config(hyper: Hyperparameters) -> dict[str, Any]:
    """Return the config.json entries for hyperparameters that tensors do not determine."""
    return {
        "n_head": hyper.n_head,
        "activation_function": "gelu" if hyper.activation == ERF else ACTIVATION,
        "layer_norm_epsilon": hyper.layer_norm_epsilon,
        "scale_attn_weights": hyper.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": hyper.scale_attn_by_inverse_layer_idx,
    }


def hyperparameters(
    recognised: Recognised, config: Mapping[str, Any], path: str, activation: str | None = None
) -> Hyperparameters:
    """Return the hyperparameters from the tensors, the configuration and the model table.

    `activation`, one of `ACTIVATIONS`, overrides the configuration. Raises BadRequest if a value
    cannot be determined, Unsupported for options that are not supported.
    """
    if recognised.n_head is None:
        raise BadRequest(
            "the number of attention heads is unknown; it cannot be inferred from the tensors",
            where=path,
            hint=f"put the model's {CONFIG} next to the weights, or pass --heads N",
        )
    settings = _ConfigValues(config, path)
    settings.expect("add_cross_attention", (None, False))
    settings.expect("position_embedding_type", (None, "learned"))
    # it only changes the order of operations in 16-bit dtypes; here everything is float32
    settings.expect("reorder_and_upcast_attn", (None, False, True))
    known = recognised.shape_of.layer_norm_epsilon if recognised.shape_of else EPSILON
    return Hyperparameters(
        **recognised.sizes,
        n_head=recognised.n_head,
        activation=_activation(recognised, config, path, activation),
        layer_norm_epsilon=settings.epsilon("layer_norm_epsilon", known),
        scale_attn_weights=settings.flag("scale_attn_weights", default=True),
        scale_attn_by_inverse_layer_idx=settings.flag(
            "scale_attn_by_inverse_layer_idx", default=False
        ),
    )


def _activation(
    recognised: Recognised, config: Mapping[str, Any], path: str, given: str | None
) -> str:
    """Return the requested activation, else the configured one, else that of the known model."""
    name: object = given or config.get("activation_function")
    if name is None and recognised.shape_of:
        name = recognised.shape_of.activation
    if name is None:
        raise BadRequest(
            "the activation function is unknown; it cannot be inferred from the tensors",
            where=path,
            hint=f"put the model's {CONFIG} next to the weights, or pass --activation NAME",
        )
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise Unsupported(
            f"the activation function {printable(repr(name))} is not supported",
            where=path,
            hint=f"supported: {', '.join(ACTIVATIONS)}",
        )
    return ACTIVATIONS[name]


class _ConfigValues:
    """Access to values of a config.json, which can have any type."""

    def __init__(self, config: Mapping[str, Any], path: str) -> None:
        self._config, self._path = config, path

    def expect(self, key: str, allowed: tuple[object, ...]) -> None:
        value = self._config.get(key)
        if not any(value is each or (value == each and type(value) is str) for each in allowed):
            raise self._refusal(key, value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._refusal(key, value)
        return value

    def epsilon(self, key: str, default: float) -> float:
        value = self._config.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise self._refusal(key, value)
        return float(value)

    def _refusal(self, key: str, value: object) -> Unsupported:
        shown = printable(repr(value))[:80]
        return Unsupported(f"{CONFIG} has {key} {shown}, which is not supported", where=self._path)

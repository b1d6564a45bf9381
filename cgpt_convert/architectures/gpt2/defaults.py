"""What transformers' GPT2Config means where a config.json does not say.

The activation is also what llama.cpp computes for every GPT-2: its files do not tell which one the
model was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACTIVATION = "gelu_new"
EPSILON = 1e-5
CONFIG_DEFAULTS = {"activation_function": ACTIVATION, "tie_word_embeddings": True}


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a config.json with the activation that its absence means."""
    said = config.get("activation_function")
    return {**config, "activation_function": ACTIVATION if said is None else said}

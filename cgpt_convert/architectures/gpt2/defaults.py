"""The defaults of transformers' GPT2Config, used for missing keys of config.json.

llama.cpp also computes this activation for every GPT-2, since its files do not record the one that
the model was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACTIVATION = "gelu_new"
EPSILON = 1e-5
CONFIG_DEFAULTS = {"activation_function": ACTIVATION, "tie_word_embeddings": True}


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a config.json with the default activation filled in."""
    said = config.get("activation_function")
    return {**config, "activation_function": ACTIVATION if said is None else said}

"""Optional modules of an architecture beyond its TOML file, found by its name.

Features that read and compare tensors need only the names and shapes in the TOML file. A feature
that writes or computes a whole model looks for the module `architectures/<name>/<feature>.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Literal, Protocol

from cgpt_convert.architectures.schema import Architecture, architectures
from cgpt_convert.core.errors import Unsupported

Feature = Literal["hf", "gguf", "forward", "java_program"]
FEATURES: dict[Feature, str] = {
    "hf": "output for transformers (--to hf)",
    "gguf": "GGUF output",
    "forward": "running the model (generate, eval, verify --logits)",
    "java_program": "output for the raw-parameters program (extract --properties)",
}
_HINTS: dict[Feature, str] = {
    "hf": "use --to safetensors to write only the weights",
    "gguf": "use --to safetensors, which writes any tensors",
    "forward": "inspect, digest, diff, and verify without --logits work with any tensors",
    "java_program": "run extract without --properties",
}


class ModelSizes(Protocol):
    """The sizes of a model, as `hyperparameters` of every forward pass returns them."""

    @property
    def n_layer(self) -> int:
        """The number of layers."""

    @property
    def n_embd(self) -> int:
        """The hidden size: the size of the residual stream."""

    @property
    def n_head(self) -> int:
        """The number of attention heads."""

    @property
    def d_head(self) -> int:
        """The size of one attention head."""

    @property
    def n_positions(self) -> int:
        """The greatest number of tokens of one sequence."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary."""


def has_hook(architecture: Architecture, feature: Feature) -> bool:
    """Return whether there is a module for the feature, without running it."""
    name = architecture.name
    if not name.isidentifier():
        return False
    package = f"{__package__}.{name}"
    try:
        return importlib.util.find_spec(f"{package}.{feature}") is not None
    except ModuleNotFoundError as error:  # no such package, or a module of this package
        if error.name not in (package, f"{package}.{feature}"):
            raise
        return False


def hook(architecture: Architecture, feature: Feature, where: str = "") -> ModuleType:
    """Return the architecture's module for the feature.

    Raises Unsupported, naming the architecture, the feature and those that have it, if there is
    none. `where` is the path of the weights.
    """
    if not has_hook(architecture, feature):
        raise Unsupported(
            f"{FEATURES[feature]} is not supported for {architecture.name}",
            where=where,
            hint=f"supported: {', '.join(with_hook(feature))}; {_HINTS[feature]}",
        )
    return importlib.import_module(f"{__package__}.{architecture.name}.{feature}")


def with_hook(feature: Feature) -> list[str]:
    """Return the names of the architectures that have a module for the feature."""
    return [name for name, each in architectures().items() if has_hook(each, feature)]

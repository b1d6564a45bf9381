"""The roles of a file's tensors in a recognised architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cgpt_convert.architectures.known_models import KnownModel
from cgpt_convert.architectures.schema import Architecture, TensorPosition, fill
from cgpt_convert.tensors.tensor import Tensor


class Recognised(NamedTuple):
    """The roles of a file's tensors in an architecture, found without reading tensor data."""

    architecture: Architecture
    prefix: str  # the common prefix of its names, `wrapper` included
    wrapper: str  # name components added by wrapper modules: "module._orig_mod."
    places: Mapping[str, TensorPosition]  # name in the file -> place in the model; in file order
    sizes: Mapping[str, int]  # as the tensors imply, named as in the schema
    n_head: int | None
    n_head_source: str  # "config.json" or the known model's name; "" if unknown
    shape_of: KnownModel | None  # the known model of these shapes and heads; weights may differ
    identity: KnownModel | None  # the same, if config.json names it
    skipped: tuple[str, ...]  # names of buffers, which no output contains
    misfits: tuple[str, ...]  # a line per unexpected, missing or ill-shaped tensor
    head: str  # "tied": the same storage as its twin; "own copy": another; "absent"
    # layout of Conv1D weights: "contiguous", "transposed" (strides (1, in)), "mixed", "" for none,
    # "linear" for the layout of Linear layers
    conv1d: str
    linear: bool  # Conv1D weights are stored (out, in), as nanoGPT's Linear layers
    refusal: str  # why logits cannot be computed from these weights; "" if they can

    def laid_out(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor called `name` in the file in transformers' layout, (in, out)."""
        place = self.places.get(name)
        turned = self.linear and place is not None and place.rule.conv1d
        return tensor.transposed() if turned else tensor

    def names(self, target: str) -> dict[str, str]:
        """Return name in the file -> name for `target`: "hf" (canonical) or a column of the TOML.

        Tensors without a name in the target are omitted.
        """
        names = {}
        for name, place in self.places.items():
            if target == "hf":
                names[name] = place.name(self.architecture.canonical)
            elif target in place.rule.names:
                names[name] = fill(place.rule.names[target], place.layer)
        return names

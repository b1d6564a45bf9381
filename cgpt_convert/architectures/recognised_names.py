"""What a file's tensors are in the terms of an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cgpt_convert.architectures.known_models import Model
from cgpt_convert.architectures.schema import Architecture, Place, fill
from cgpt_convert.tensors.tensor import Tensor


class Recognised(NamedTuple):
    """What a file's tensors are in the terms of an architecture. Nothing was read to know it."""

    architecture: Architecture
    prefix: str  # that its names have, `wrapper` included
    wrapper: str  # what wrapper modules put before or into its names: "module._orig_mod."
    places: Mapping[str, Place]  # name in the file -> what it is; in the file's order
    sizes: Mapping[str, int]  # what the tensors tell, called as in config.json
    n_head: int | None
    n_head_source: str  # "config.json", or the known model's name; "" if nothing tells it
    shape_of: Model | None  # the known model of these shapes and heads; weights may be others
    identity: Model | None  # the same, if config.json names it
    skipped: tuple[str, ...]  # names of buffers that no output has
    misfits: tuple[str, ...]  # everything unexpected, missing or ill-shaped, with what was expected
    head: str  # "tied": the same storage as its twin; "own copy": another; "absent"
    # how Conv1D weights lie: "contiguous", "transposed" (strides (1, in)), "mixed", "" for none,
    # "linear" for the layout of Linear layers
    conv1d: str
    linear: bool  # Conv1D weights are stored (out, in), as nanoGPT's Linear layers
    refusal: str  # why logits cannot be had from these weights; "" if they can

    def laid_out(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor called `name` in the file as transformers lays it out: (in, out)."""
        place = self.places.get(name)
        turned = self.linear and place is not None and place.rule.conv1d
        return tensor.transposed() if turned else tensor

    def names(self, target: str) -> dict[str, str]:
        """Name in the file -> name for `target`: "hf" (canonical), or a column of the TOML.

        Tensors that the target has no name for are left out.
        """
        found = {}
        for name, place in self.places.items():
            if target == "hf":
                found[name] = place.name(self.architecture.canonical)
            elif target in place.rule.names:
                found[name] = fill(place.rule.names[target], place.layer)
        return found

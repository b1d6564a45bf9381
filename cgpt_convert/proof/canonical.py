"""Tensors under their own names and under those that they have whatever the container."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.exports import undone
from cgpt_convert.mapping.recognise import recognise
from cgpt_convert.proof.pairs import Names
from cgpt_convert.select import Wish, select
from cgpt_convert.tensor import Tensor


class Weights(NamedTuple):
    """The tensors of a checkpoint, each under each of its names, uncast, layout undone.

    `keys` are what tensors are compared by: the architecture's names, with its first prefix; of a
    tensor or an architecture that is not known, its own name.
    """

    path: str
    kind: str  # the container: "GGUF" ...
    tensors: dict[str, Tensor]  # by own name, in the file's order
    keys: dict[str, str]  # own name -> key, all different
    buffers: frozenset[str]  # own names of what is computed, not learned, so no model needs it
    ties: Mapping[str, str]  # key of what may be left out -> key of what it equals then
    architecture: str  # "" if it is not known
    misfits: tuple[str, ...]  # why it is not all of a model of that architecture, and no more

    @property
    def is_model(self) -> bool:
        """Are these all the tensors of a known architecture and nothing else?"""
        return bool(self.architecture) and not self.misfits

    def name_in_file(self, name: str) -> str:
        """What the file itself calls the tensor: a GGUF file's names were undone."""
        return self.tensors[name].storage.key if self.kind == "GGUF" else name

    @property
    def names(self) -> Names:
        """What the tensors are compared by, without them."""
        return Names(self.keys, self.buffers, self.ties, self.architecture)


def weights(checkpoint: Checkpoint, wish: Wish | None = None) -> Weights:
    """What `convert` would write of the checkpoint: its tensors, the root taken off their names.

    Of `wish` the root and the globs count. Raises BadRequest as `select` does.
    """
    wish = (wish or Wish())._replace(dtype="keep", tied="copy")
    return named(select(undone(checkpoint), wish).tensors, checkpoint.path, checkpoint.kind)


def named(tensors: Iterable[Tensor], path: str = "", kind: str = "") -> Weights:
    """The tensors, whose names are different, with all that is known of their names."""
    own = {tensor.name: tensor.uncast for tensor in tensors}
    found = recognise(own)
    if found is None:
        return Weights(path, kind, own, dict(zip(own, own, strict=True)), frozenset(), {}, "", ())
    canonical = found.names("hf")
    keys = {name: canonical.get(name, name) for name in own}
    if len(set(keys.values())) < len(keys):  # a name is another's canonical one: it stays apart
        keys = dict(zip(own, own, strict=True))
    return Weights(
        path=path,
        kind=kind,
        tensors=own,
        keys=keys,
        buffers=frozenset(found.skipped),
        ties=found.architecture.ties,
        architecture=found.architecture.name,
        misfits=found.misfits,
    )

"""Tensors under their own names and under the canonical names of their architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cgpt_convert.architectures.recognise import recognise
from cgpt_convert.checkpoint import Checkpoint, CompositeTensor
from cgpt_convert.sources.local import Source
from cgpt_convert.targets.hf_view import undone
from cgpt_convert.targets.renaming import new_names
from cgpt_convert.targets.selection import (
    EVERYTHING,
    TensorSelection,
    chosen_names,
    everything,
    relative,
)
from cgpt_convert.tensors.tensor import Tensor
from cgpt_convert.verification.pairing import NamedTensors

_LINEAR = "weights are stored as Linear weights (out, in)"  # such models have no model digest
LOST, AMBIGUOUS, UNSAVED = "unreadable", "ambiguous", "unsaved"  # kinds without a view


class CanonicalWeights(NamedTuple):
    """The tensors of a checkpoint under each of their names, uncast, in transformers' layout.

    `keys` identify tensors for comparison: the architecture's names with its first prefix, or a
    tensor's own name if it or the architecture is unknown.
    """

    path: str
    format: str  # the name of the file's format
    tensors: dict[str, Tensor]  # by own name, in the file's order
    odd: dict[
        str, CompositeTensor
    ]  # by own name: tensors that are not one dense view, or have no value
    keys: dict[str, str]  # own name -> unique key, for `tensors` and `odd`
    buffers: frozenset[str]  # own names of computed buffers, which a model does not need
    extras: Mapping[str, str]  # own name of a tensor outside state_dict() -> its description
    ties: Mapping[str, str]  # key of a tensor that may be absent -> key of its twin
    architecture: str  # "" if unknown
    misfits: tuple[str, ...]  # differences from a complete model of that architecture
    root: str = ""  # own names are relative to it
    outside: tuple[str, ...] = ()  # names in the file of the tensors not selected
    sources: tuple[Source, ...] = ()  # the files
    # own names of weights stored as (out, in), as in Linear layers, that are (in, out) elsewhere
    linear: frozenset[str] = frozenset()
    old_names: Mapping[str, str] = {}  # own name of a tensor that was renamed -> name before that

    @property
    def is_model(self) -> bool:
        """Whether these are exactly the tensors of a known architecture."""
        return bool(self.architecture) and not self.misfits and not self.odd

    @property
    def total(self) -> int:
        """The number of all tensors in the file."""
        return len(self.keys) + len(self.outside)

    def name_in_file(self, name: str) -> str:
        """Return the tensor's name in the file, which for GGUF differs from its own name."""
        tensor = self.tensors.get(name) if self.format == "gguf" else None
        return tensor.storage.key if tensor else name

    def old_name(self, name: str) -> str:
        """Return the tensor's name before it was renamed."""
        return self.old_names.get(name, name)

    def full_name(self, name: str) -> str:
        """Return the name with the root as prefix."""
        return f"{self.root}.{name}" if self.root else name

    @property
    def names(self) -> NamedTensors:
        """The names by which the tensors are compared, without the tensors."""
        return NamedTensors(self.keys, self.buffers, self.extras, self.ties, self.architecture)


def weights(
    checkpoint: Checkpoint, wish: TensorSelection | None = None, *, extras: bool = True
) -> CanonicalWeights:
    """Return the tensors selected by `wish`: all of the file if it has no root and no globs.

    Without `extras`, and if no root is given, these are the tensors that `convert` writes. Raises
    BadRequest if no tensor is selected, Unsupported if the file has none.
    """
    wish = wish or TensorSelection()
    if extras and wish.root is None:
        wish = wish._replace(root=EVERYTHING)
    checkpoint = undone(checkpoint)
    root, chosen = chosen_names(checkpoint, wish, extras=extras)
    old = {name: relative(name, root) for name in chosen}
    new = new_names(old.values(), wish.rename, checkpoint.path)
    own = {name: new[relative_name] for name, relative_name in old.items()}
    odd = {name: each for name in chosen if (each := _odd(checkpoint, name))}
    dense = [checkpoint[name].renamed(own[name]) for name in chosen if name not in odd]
    named_tensors = named(dense, checkpoint.path, checkpoint.format)
    keys = named_tensors.keys | {own[name]: own[name] for name in odd}
    if len(set(keys.values())) < len(keys):
        keys = {name: name for name in keys}
    return named_tensors._replace(
        odd={own[name]: each for name, each in odd.items()},
        keys={own[name]: keys[own[name]] for name in chosen},
        extras={own[n]: checkpoint.extras[n] for n in chosen if n in checkpoint.extras},
        root=root,
        outside=tuple(name for name in everything(checkpoint) if name not in own),
        sources=checkpoint.sources,
        old_names={after: before for before, after in new.items() if after != before},
    )


def converted_part(
    checkpoint: Checkpoint, chosen: CanonicalWeights, wish: TensorSelection
) -> CanonicalWeights:
    """Return the weights that `convert` writes, if they are a part of `chosen`; else `chosen`.

    Raises BadRequest if several roots may contain the weights.
    """
    if wish != TensorSelection():
        return chosen
    part = weights(checkpoint, wish, extras=False)
    return part if len(part.keys) < len(chosen.keys) or part.root else chosen


def named(tensors: Iterable[Tensor], path: str = "", form: str = "") -> CanonicalWeights:
    """Return the tensors, whose names must be unique, with their canonical names."""
    own = {tensor.name: tensor.uncast for tensor in tensors}
    recognised = recognise(own)
    plain = dict(zip(own, own, strict=True))
    if recognised is None:
        return CanonicalWeights(path, form, own, {}, plain, frozenset(), {}, {}, "", ())
    canonical = recognised.names("hf")
    keys = {name: canonical.get(name, name) for name in own}
    if len(set(keys.values())) < len(keys):  # a name is another's canonical name
        keys = plain
    return CanonicalWeights(
        path=path,
        format=form,
        tensors=own,
        odd={},
        keys=keys,
        buffers=frozenset(recognised.skipped),
        extras={},
        ties=recognised.architecture.ties,
        architecture=recognised.architecture.name,
        misfits=(*recognised.misfits, *([_LINEAR] if recognised.linear else ())),
        linear=frozenset(
            name
            for name, place in recognised.places.items()
            if recognised.linear and place.rule.conv1d
        ),
    )


def aligned(
    one: CanonicalWeights, other: CanonicalWeights, pairs: Mapping[str, str]
) -> tuple[CanonicalWeights, set[str]]:
    """Return `one` in the layout of `other`, and the names of the transposed weights.

    `pairs` maps own names of `one` to those of `other`. Weights of Linear layers are (out, in),
    those of Conv1D (in, out).
    """
    turned = {name for name, own in pairs.items() if (name in one.linear) != (own in other.linear)}
    tensors = {name: t.transposed() if name in turned else t for name, t in one.tensors.items()}
    return one._replace(tensors=tensors), turned


def _odd(checkpoint: Checkpoint, name: str) -> CompositeTensor | None:
    """Return a description of a tensor that is not one dense view with values, or None."""
    if name in checkpoint.lost:
        return CompositeTensor(name, LOST, "", (), checkpoint.lost[name].why)
    if name in checkpoint.collisions:
        return CompositeTensor(name, AMBIGUOUS, "", (), "two values have this name")
    if name in checkpoint.unsaved:
        tensor = checkpoint[name]
        # the detail is part of the tensor's digest: it must not change
        return CompositeTensor(
            name, UNSAVED, tensor.dtype.name, tensor.shape, "its values were not saved"
        )
    return checkpoint.exotic.get(name)

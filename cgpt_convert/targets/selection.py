"""Select the tensors to write and their names: root, globs, new names, ties, casts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from cgpt_convert.architectures.schema import tied_names
from cgpt_convert.checkpoint import Checkpoint, MissingTensor
from cgpt_convert.core.errors import BadRequest, Malformed, Unsupported
from cgpt_convert.core.file_names import excluding
from cgpt_convert.core.text import printable, quoted
from cgpt_convert.targets.renaming import Rule, new_names
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.tensor import Tensor

# Keys under which training programs store the weights: Lightning, timm, fairseq, detectron2,
# NeMo, RVC and many scripts. Averaged weights (ema) are another model and are therefore not
# used by default.
WELL_KNOWN_ROOTS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model_weights",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weight",
    "weights",
)
EVERYTHING = "."


class TensorSelection(NamedTuple):
    """The user's selection; by default all tensors, unchanged."""

    root: str | None = None  # a dotted key, "." for everything, None for a well-known key
    match: Sequence[str] = ()
    exclude: Sequence[str] = ()
    dtype: str = "keep"
    tied: str = "alias"  # or "copy"
    rename: Sequence[Rule] = ()  # for the names relative to the root


@dataclass(slots=True)
class SelectedTensors:
    """The tensors to write. `root` is the root used; `left_out` lists tensors outside of it.

    `lost` has the requested tensors of a salvaged checkpoint that are not intact.
    """

    root: str
    tensors: list[Tensor]
    aliases: dict[str, str] = field(default_factory=dict)  # omitted name -> kept name
    left_out: list[str] = field(default_factory=list)
    lost: dict[str, MissingTensor] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)  # old name -> new name

    @property
    def nbytes(self) -> int:
        """The size of the tensors to write, in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)


def select(checkpoint: Checkpoint, wish: TensorSelection) -> SelectedTensors:
    """Return the tensors that `wish` selects, under their names relative to the root, or new ones.

    Raises BadRequest if none matches, or if the rules for new names do not fit; Unsupported or
    Malformed if there are no tensors, or naming each selected tensor that is not dense, cannot be
    read, or has no value or two.
    """
    root, asked = chosen_names(checkpoint, wish)
    where = checkpoint.path
    lost = {relative(n, root): checkpoint.lost[n] for n in asked if n in checkpoint.lost}
    chosen = [name for name in asked if name not in checkpoint.lost]
    if not chosen:
        raise Malformed(f"none of the {len(lost):,} selected tensors is intact", where=where)
    check_dense(checkpoint, chosen, root)
    new = new_names([relative(name, root) for name in asked], wish.rename, where)
    own = [relative(name, root) for name in chosen]
    tensors = [checkpoint[n].renamed(new[old]) for n, old in zip(chosen, own, strict=True)]
    kept = {*asked}
    inside = {*under(checkpoint, root)} - checkpoint.extras.keys()
    left_out = [n for n in everything(checkpoint) if n not in inside and n not in kept]
    aliases: dict[str, str] = {}
    if wish.tied == "alias":
        tensors, aliases = fold_ties(tensors)
    if wish.dtype != "keep":
        to = BY_NAME[wish.dtype]
        tensors = [t.cast(to) if t.dtype.is_float else t for t in tensors]
    renamed = {name: new[name] for name in own if new[name] != name}
    return SelectedTensors(root, tensors, aliases, left_out, lost, renamed)


def chosen_names(
    checkpoint: Checkpoint, wish: TensorSelection, *, extras: bool = False
) -> tuple[str, list[str]]:
    """Return the root, and the names in the file of the tensors that `wish` selects.

    Missing tensors are included. Tensors that `state_dict()` does not contain are included with
    `extras`, with the root `.`, and if there are no others. Raises Unsupported if there are no
    tensors, BadRequest if none matches.
    """
    root = choose_root(checkpoint) if wish.root is None else given_root(checkpoint, wish.root)
    names = everything(checkpoint)
    inside = under(checkpoint, root)
    if not extras and wish.root != EVERYTHING:
        inside = [name for name in inside if name not in checkpoint.extras] or inside
    chosen = [n for n in inside if wanted(relative(n, root), wish.match, wish.exclude)]
    if not names:
        raise Unsupported("the file contains no tensors", where=checkpoint.path)
    if not chosen:
        raise no_match(checkpoint.path, [relative(name, root) for name in inside])
    return root, chosen


def choose_root(checkpoint: Checkpoint) -> str:
    """Return the only well-known container that directly contains tensors, or is a module.

    Of nested containers the innermost is used; if all tensors are in further dicts, the outermost.
    Raises BadRequest if there are several side by side, since only the user knows which is meant.
    """
    children = _children(checkpoint)
    chain = [""]
    while True:
        here = [path for path in children.get(chain[-1], ()) if _is_well_known(path, chain[-1])]
        here = [path for path in here if under(checkpoint, path)]
        if not here:
            break
        if len(here) > 1:
            raise BadRequest(
                f"several keys may contain the weights: {', '.join(map(printable, here))}",
                where=checkpoint.path,
                hint="select one with --root KEY, or all tensors with --root .",
            )
        chain.append(here[0])
    for root in reversed(chain[1:]):
        inner = children.get(root, [])
        if any(not any(is_under(n, path) for path in inner) for n in under(checkpoint, root)):
            return root
    return chain[:2][-1]


def _is_well_known(path: str, parent: str) -> bool:
    return relative(path, parent) in WELL_KNOWN_ROOTS


def _children(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Return the direct child containers of each container."""
    children: dict[str, list[str]] = {}
    for path, parent in checkpoint.containers.items():
        if path:
            children.setdefault(parent, []).append(path)
    return children


def parts(checkpoint: Checkpoint, names: Iterable[str], root: str = "") -> dict[str, int]:
    """Return the number of the tensors `names` in each container next to the root.

    Without a root, these are the outermost level with several containers. Tensors in no such
    container count under their own names if they are few, else under "".
    """
    names = [*names]
    children = _children(checkpoint)
    around = _around(children, root) if root else _wrappers(children, names)
    sizes: dict[str, int] = {}
    alone = []
    for name in names:
        above = next(path for path in reversed(around) if is_under(name, path))
        inside = [path for path in children.get(above, ()) if is_under(name, path)]
        if inside:
            key = max(inside, key=len)  # `policy.optimizer` may be a key next to `policy`
            sizes[key] = sizes.get(key, 0) + 1
        else:
            alone.append(name)
    if len(alone) > _SHOWN:
        return sizes | {"": len(alone)}
    return sizes | dict.fromkeys(alone, 1)


def _around(children: Mapping[str, list[str]], root: str) -> list[str]:
    """Return the containers around the root, outermost first."""
    around = [""]
    while root not in children.get(around[-1], ()):
        inner = [path for path in children.get(around[-1], ()) if is_under(root, path)]
        if not inner:
            break
        around.append(inner[0])
    return around


def _wrappers(children: Mapping[str, list[str]], names: Sequence[str]) -> list[str]:
    """Return the nested containers that contain all the tensors, outermost first."""
    around = [""]
    while True:
        inner = [
            path
            for path in children.get(around[-1], ())
            if path in children and names and all(is_under(name, path) for name in names)
        ]
        if not inner or not any(is_under(names[0], path) for path in children[inner[0]]):
            return around
        around.append(inner[0])


def fold_ties(tensors: Iterable[Tensor]) -> tuple[list[Tensor], dict[str, str]]:
    """Return the tensors with each view once, and omitted name -> kept name.

    The first in file order is kept, which is the order of the modules: usually the embedding comes
    before the head that shares it. A head that comes first is omitted instead; the architectures
    name their heads.
    """
    groups: dict[tuple[object, ...], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.view, []).append(tensor)
    aliases = {}
    kept = []
    for group in groups.values():
        keeper = group[0]
        if len(group) > 1:
            heads = tied_names()
            keeper = min(group, key=lambda tensor: tensor.name.endswith(heads))
        kept.append(keeper)
        aliases.update({t.name: keeper.name for t in group if t is not keeper})
    return kept, aliases


def given_root(checkpoint: Checkpoint, root: str) -> str:
    """Return the root given by the user. Raises BadRequest if it contains no tensors."""
    if root == EVERYTHING:
        return ""
    if under(checkpoint, root):
        return root
    known = [path for path in checkpoint.containers if path and under(checkpoint, path)]
    known = known[:_CONTAINERS]
    raise BadRequest(
        f"there are no tensors under {quoted(root)}",
        where=checkpoint.path,
        hint=f"keys with tensors: {', '.join(map(printable, known))}"
        if known
        else "omit --root: the tensors are not under a key",
    )


def no_match(where: str, names: Sequence[str]) -> BadRequest:
    """Return the error for globs that match none of `names`, with some of the names."""
    some = ", ".join(map(printable, names[:_SHOWN]))
    hint = f"change --match or --exclude; the first names are {some}" if some else ""
    return BadRequest("no tensor matches the selection", where=where, hint=hint)


_SHOWN = 3
_CONTAINERS = 10


def everything(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the names of all tensors: dense, exotic and lost."""
    return (*checkpoint, *checkpoint.exotic, *checkpoint.lost)


def under(checkpoint: Checkpoint, root: str) -> list[str]:
    """Return the names of the tensors in the container `root`, or with it as a name prefix.

    The key `model.optimizer` next to `model` is not in the container `model`.
    """
    names = [name for name in everything(checkpoint) if is_under(name, root)]
    parents = checkpoint.containers
    if not root or root not in parents:
        return names
    known = {root: True, "": False}

    def inside(path: str) -> bool:
        climbed = []
        while path not in known:
            climbed.append(path)
            path = parents.get(path, "")
        known.update(dict.fromkeys(climbed, known[path]))
        return known[path]

    return [name for name in names if inside(checkpoint.within.get(name, root))]


def is_under(name: str, root: str) -> bool:
    """Return whether the root is a prefix of the name."""
    return not root or name.startswith(root + ".")


def relative(name: str, root: str) -> str:
    """Return the tensor's name relative to the root."""
    return name[len(root) + 1 :] if root else name


def wanted(name: str, match: Sequence[str], exclude: Sequence[str] = ()) -> bool:
    """Return whether a glob of `match` (if any) and no glob of `exclude` matches the name."""
    if match and not any(_fits(name, glob) for glob in match):
        return False
    return not any(_fits(name, glob) for glob in exclude)


def _fits(name: str, glob: str) -> bool:
    """Return whether the glob matches. A literal name also matches itself, such as `x[0].w`."""
    return name == glob or fnmatchcase(name, glob)


def check_dense(checkpoint: Checkpoint, chosen: Iterable[str], root: str = "") -> None:
    """Raise Unsupported or Malformed if one of the tensors `chosen` has no plain elements.

    The error names each of them with the reason, and the options that skip them.
    """
    reasons = {name: reason for name in chosen if (reason := _not_dense(checkpoint, name))}
    if not reasons:
        return
    lines = [f"tensor {quoted(name)} {reason}" for name, reason in reasons.items()]
    more = len(lines) - _LISTED
    lines[_LISTED:] = [f"and {more:,} more"] if more > 0 else []
    errors = [checkpoint.exotic[name].error for name in reasons if name in checkpoint.exotic]
    damaged = any(isinstance(error, Malformed) for error in errors)
    if len(lines) > 1:
        lines.insert(0, f"{len(reasons):,} tensors cannot be used:")
    names = [relative(name, root) for name in reasons]
    hint = f"use {excluding(names)} to skip {'it' if len(names) == 1 else 'them'}"
    raise (Malformed if damaged else Unsupported)(
        "\n  ".join(lines), where=checkpoint.path, hint=hint
    )


_LISTED = 20


def _not_dense(checkpoint: Checkpoint, name: str) -> str:
    """Return why a tensor has no plain elements; "" if it has."""
    if name in checkpoint.collisions:
        return "has more than one value"
    if name in checkpoint.unsaved:
        return "has no values: the file was written without them"
    entry = checkpoint.exotic.get(name)
    if entry is None:
        return ""
    if entry.error:
        return f"cannot be read: {entry.detail}"
    return f"is not dense: {entry.kind} ({entry.detail})"

"""Which tensors of a checkpoint are written, under which names: root, globs, ties, casts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from cgpt_convert.checkpoint import Checkpoint, Lost
from cgpt_convert.core.errors import BadRequest, Malformed, Unsupported
from cgpt_convert.core.file_names import excluding
from cgpt_convert.core.text import printable
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.tensor import Tensor

# Under these keys training programs keep the weights themselves: Lightning, timm, fairseq,
# detectron2, NeMo, RVC and many a script. An average of weights (ema) is another model, so it
# is not taken unasked.
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


class Wish(NamedTuple):
    """What the user asks for; the defaults ask for everything as it is."""

    root: str | None = None  # a dotted key, "." for everything, None for the well-known one
    match: Sequence[str] = ()
    exclude: Sequence[str] = ()
    dtype: str = "keep"
    tied: str = "alias"  # or "copy"


@dataclass(slots=True)
class Selection:
    """What is to be written. `root` was taken; `left_out` counts tensors outside of it.

    `lost` are those asked for that are not whole: the checkpoint is salvaged.
    """

    root: str
    tensors: list[Tensor]
    aliases: dict[str, str] = field(default_factory=dict)  # a name left out -> its equal
    left_out: list[str] = field(default_factory=list)
    lost: dict[str, Lost] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes of the tensors to be written."""
        return sum(tensor.nbytes for tensor in self.tensors)


def select(checkpoint: Checkpoint, wish: Wish) -> Selection:
    """The tensors that `wish` asks for, renamed to what stands behind the root.

    Raises BadRequest where none matches; Unsupported or Malformed where there are no tensors, and
    naming every one chosen that is not dense, cannot be read, or has no value or two.
    """
    root, asked = chosen_names(checkpoint, wish)
    where = checkpoint.path
    lost = {relative(n, root): checkpoint.lost[n] for n in asked if n in checkpoint.lost}
    chosen = [name for name in asked if name not in checkpoint.lost]
    if not chosen:
        raise Malformed(f"of {len(lost):,} tensors none is whole", where=where)
    check_dense(checkpoint, chosen, root)
    tensors = [checkpoint[name].renamed(relative(name, root)) for name in chosen]
    kept = {*asked}
    inside = {*under(checkpoint, root)} - checkpoint.extras.keys()
    left_out = [n for n in everything(checkpoint) if n not in inside and n not in kept]
    aliases: dict[str, str] = {}
    if wish.tied == "alias":
        tensors, aliases = fold_ties(tensors)
    if wish.dtype != "keep":
        to = BY_NAME[wish.dtype]
        tensors = [t.cast(to) if t.dtype.is_float else t for t in tensors]
    return Selection(root, tensors, aliases, left_out, lost)


def chosen_names(
    checkpoint: Checkpoint, wish: Wish, *, extras: bool = False
) -> tuple[str, list[str]]:
    """Return the root, and the names in the file of the tensors that `wish` asks for.

    Lost ones are among them. Tensors that `state_dict()` does not contain are included with
    `extras`, with the root `.`, and if there are no others. Raises Unsupported where there are no
    tensors, BadRequest where none matches.
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
    """Return the lone well-known container that directly holds tensors, or is a module.

    Of several inside each other it is the innermost; if none holds tensors but in further dicts,
    the outermost. Raises BadRequest if there are several beside each other: only the user knows
    which is meant.
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
                f"the weights may be under any of {', '.join(map(printable, here))}",
                where=checkpoint.path,
                hint="name one with --root, or take everything with --root .",
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
    """Return the containers that are directly in each container."""
    found: dict[str, list[str]] = {}
    for path, parent in checkpoint.containers.items():
        if path:
            found.setdefault(parent, []).append(path)
    return found


def parts(checkpoint: Checkpoint, names: Iterable[str], root: str = "") -> dict[str, int]:
    """Return how many of the tensors `names` are in each container beside the root.

    Without a root these are the outermost containers of which there are several. Tensors in no such
    container count under their own names if they are few, else under "".
    """
    names = [*names]
    children = _children(checkpoint)
    around = _around(children, root) if root else _wrappers(children, names)
    found: dict[str, int] = {}
    alone = []
    for name in names:
        above = next(path for path in reversed(around) if is_under(name, path))
        inside = [path for path in children.get(above, ()) if is_under(name, path)]
        if inside:
            key = max(inside, key=len)  # `policy.optimizer` may be a key beside `policy`
            found[key] = found.get(key, 0) + 1
        else:
            alone.append(name)
    if len(alone) > _SHOWN:
        return found | {"": len(alone)}
    return found | dict.fromkeys(alone, 1)


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
    """Return the containers that hold all the tensors, in further containers."""
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
    """The tensors with each view once, and the names left out with the name that was kept.

    Kept is the first in file order, which is the order of the modules: the embedding comes
    before the head that borrows it (and should the head come first, it yields).
    """
    groups: dict[tuple[object, ...], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.view, []).append(tensor)
    aliases = {}
    kept = []
    for group in groups.values():
        keeper = min(group, key=lambda tensor: tensor.name.endswith("lm_head.weight"))
        kept.append(keeper)
        aliases.update({t.name: keeper.name for t in group if t is not keeper})
    return kept, aliases


def given_root(checkpoint: Checkpoint, root: str) -> str:
    """Return the path of the root that the user names; BadRequest if there are no tensors in it."""
    if root == EVERYTHING:
        return ""
    if under(checkpoint, root):
        return root
    known = [path for path in checkpoint.containers if path and under(checkpoint, path)]
    known = known[:_CONTAINERS]
    raise BadRequest(
        f"no tensor is under {root!r}",
        where=checkpoint.path,
        hint=f"there are {', '.join(map(printable, known))}" if known else "",
    )


def no_match(where: str, names: Sequence[str]) -> BadRequest:
    """The error for globs that fit none of `names`, some of which it shows."""
    some = ", ".join(map(printable, names[:_SHOWN]))
    hint = f"names look like {some}" if some else ""
    return BadRequest("no tensor matches", where=where, hint=hint)


_SHOWN = 3
_CONTAINERS = 10


def everything(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the names of all tensors: dense, exotic, and lost ones."""
    return (*checkpoint, *checkpoint.exotic, *checkpoint.lost)


def under(checkpoint: Checkpoint, root: str) -> list[str]:
    """Return the names of the tensors in the container `root`, or whose names begin with it.

    The key `model.optimizer` beside `model` is not in the container `model`.
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
    """Return whether the name is one of those under the root."""
    return not root or name.startswith(root + ".")


def relative(name: str, root: str) -> str:
    """Return the name that a tensor under the root has there."""
    return name[len(root) + 1 :] if root else name


def wanted(name: str, match: Sequence[str], exclude: Sequence[str] = ()) -> bool:
    """Return whether a glob of `match` fits the name, or there are none, and none of `exclude`."""
    if match and not any(_fits(name, glob) for glob in match):
        return False
    return not any(_fits(name, glob) for glob in exclude)


def _fits(name: str, glob: str) -> bool:
    """Return whether the glob fits the name. Each name fits itself: `x[0].w` is a name, too."""
    return name == glob or fnmatchcase(name, glob)


def check_dense(checkpoint: Checkpoint, chosen: Iterable[str], root: str = "") -> None:
    """Raise Unsupported or Malformed if one of the tensors `chosen` has no plain elements.

    The error names each of them with the reason, and the options that skip them.
    """
    reasons = {name: reason for name in chosen if (reason := _not_dense(checkpoint, name))}
    if not reasons:
        return
    lines = [f"tensor {printable(name)} {reason}" for name, reason in reasons.items()]
    more = len(lines) - _LISTED
    lines[_LISTED:] = [f"and {more:,} more"] if more > 0 else []
    errors = [checkpoint.exotic[name].error for name in reasons if name in checkpoint.exotic]
    damaged = any(isinstance(error, Malformed) for error in errors)
    if len(lines) > 1:
        lines.insert(0, f"{len(reasons):,} tensors cannot be taken:")
    names = [relative(name, root) for name in reasons]
    hint = f"Use {excluding(names)} to skip {'it' if len(names) == 1 else 'them'}."
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

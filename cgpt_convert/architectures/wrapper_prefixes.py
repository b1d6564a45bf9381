"""Tensor names saved inside a wrapper module, such as `module._orig_mod.`.

DataParallel, torch.compile, FSDP, Lightning and hand-written trainers put the model into a module
of their own. `state_dict()` then puts the wrapper's attribute before every name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from cgpt_convert.architectures.schema import LAYER, Architecture

# torch puts these before the names of a module that it wraps, at any depth: torch.compile's
# OptimizedModule, FSDP's FullyShardedDataParallel, and its CheckpointWrapper.
TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_DATA_PARALLEL = "module"  # the attribute of DataParallel and DistributedDataParallel


class Prefix(NamedTuple):
    """The prefix of a model's names: `wrapper` of outer modules, then `own`."""

    wrapper: str  # "" or ends with a dot; without TRANSPARENT components
    own: str  # one of the architecture's prefixes


def unwrapped(name: str) -> str:
    """Return the name without the components that torch's transparent wrappers add."""
    if not any(each in name for each in TRANSPARENT):
        return name
    return ".".join(part for part in name.split(".") if part not in TRANSPARENT)


def removed(name: str, bare: str) -> str:
    """Return the components of `name` that `bare`, its name in the architecture, lacks.

    A leading prefix ends with a dot. Components removed from inside the name are joined by commas.
    """
    if name.endswith(bare):
        return name[: len(name) - len(bare)]
    parts, kept = name.split("."), bare.split(".")
    extra: list[str] = []
    for part in reversed(parts):
        if kept and part == kept[-1]:
            kept.pop()
        else:
            extra.insert(0, part)
    return ", ".join(dict.fromkeys(extra))


def find_prefix(architecture: Architecture, names: Iterable[str]) -> Prefix | None:
    """Return the prefix under which all the architecture's anchors occur; None if there is none.

    `names` are unwrapped. A wrapper counts only if it precedes every name; a head may be outside
    it. If several prefixes qualify, the one with the most anchors is used.
    """
    every = list(names)
    hits: dict[str, Counter[int]] = defaultdict(Counter)
    for name in every:
        for number, line in enumerate(architecture.anchors):
            for pattern in line:
                before = _before(name, pattern)
                if before is not None:
                    hits[before][number] += 1
    complete = [before for before in hits if len(hits[before]) == len(architecture.anchors)]
    complete.sort(key=lambda before: -hits[before].total())
    for before in complete:
        prefix = _split(architecture, before)
        if not prefix.wrapper or all(_inside(architecture, prefix, name) for name in every):
            return prefix
    return None


def wrapped_by_torch(names: Iterable[str]) -> str:
    """Return the wrapper that torch added to a model of any architecture; "" if there is none.

    Transformers has no such names, so it would match none of the tensors.
    """
    every = list(names)
    for part in TRANSPARENT:
        if any(part in name.split(".") for name in every):
            return part
    inside = bool(every) and all(name.startswith(f"{_DATA_PARALLEL}.") for name in every)
    return _DATA_PARALLEL if inside else ""


def _inside(architecture: Architecture, prefix: Prefix, name: str) -> bool:
    if name.startswith(prefix.wrapper):
        return True
    rule = architecture.rules.get(name)
    return rule is not None and not rule.prefixed


def _split(architecture: Architecture, before: str) -> Prefix:
    """Split `before` into a wrapper and the longest matching prefix of the architecture."""
    for own in sorted(architecture.prefixes, key=len, reverse=True):
        wrapper = before.removesuffix(own)
        if wrapper + own == before and (not wrapper or wrapper.endswith(".")):
            return Prefix(wrapper, own)
    return Prefix(before, "")


def _before(name: str, pattern: str) -> str | None:
    """Return what precedes `pattern` at the name's end, where `{i}` matches a layer number."""
    head, layered, tail = pattern.partition(LAYER)
    if not layered:
        head, tail = "", pattern
    if not name.endswith(tail):
        return None
    rest = name[: len(name) - len(tail)]
    if layered:
        stem = rest.rstrip("0123456789")
        if stem == rest or not stem.endswith(head):
            return None
        rest = stem[: len(stem) - len(head)]
    return rest if not rest or rest.endswith(".") else None

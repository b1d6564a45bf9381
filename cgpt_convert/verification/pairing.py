"""Pair the tensors of two files, by name or by their role in the architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from cgpt_convert.core.checks import FAILED, NOTE, PASSED, Check


class NamedTensors(NamedTuple):
    """The tensors of a file by name; see `canonical_names.Weights` for the fields."""

    keys: Mapping[str, str]
    buffers: frozenset[str]
    extras: Mapping[str, str]
    ties: Mapping[str, str]
    architecture: str

    def by_key(self) -> dict[str, str]:
        """Return key -> own name."""
        return {key: name for name, key in self.keys.items()}


class Pairing(NamedTuple):
    """Own names of two files' tensors; every name of either file is in one field."""

    both: dict[str, str]  # name in the first file -> name in the second
    dropped: list[str]  # only in the first: computed buffers
    tied: dict[str, str]  # only in the first: tensor that may be absent -> the twin it must equal
    extra: dict[str, str]  # only in the first: tensor outside state_dict() -> its description
    lost: list[str]  # only in the first
    added: list[str]  # only in the second
    computed: list[str]  # only in the second: buffers
    tied_there: dict[str, str]  # only in the second: as `tied`
    extra_there: dict[str, str]  # only in the second: as `extra`

    def within(self, one: Callable[[str], bool], other: Callable[[str], bool]) -> Pairing:
        """Return the pairing of the tensors whose name in the first file passes `one`.

        Names of tensors that only the second file has must pass `other`.
        """
        return Pairing(
            {name: own for name, own in self.both.items() if one(name)},
            [name for name in self.dropped if one(name)],
            {name: twin for name, twin in self.tied.items() if one(name)},
            {name: what for name, what in self.extra.items() if one(name)},
            [name for name in self.lost if one(name)],
            [name for name in self.added if other(name)],
            [name for name in self.computed if other(name)],
            {name: twin for name, twin in self.tied_there.items() if other(name)},
            {name: what for name, what in self.extra_there.items() if other(name)},
        )

    def names(self) -> list[str]:
        """Return the names in the first file."""
        return [*self.both, *self.dropped, *self.tied, *self.extra, *self.lost]

    def names_there(self) -> list[str]:
        """Return the names in the second file."""
        there = (*self.added, *self.computed, *self.tied_there, *self.extra_there)
        return [*self.both.values(), *there]


def paired(one: NamedTensors, other: NamedTensors) -> Pairing:
    """Pair the tensors by key if both architectures are the same, else by name."""
    same = one.architecture == other.architecture
    left = one.by_key() if same else {name: name for name in one.keys}
    right = other.by_key() if same else {name: name for name in other.keys}
    both = {name: right[key] for key, name in left.items() if key in right}
    gone = [name for key, name in left.items() if key not in right]
    new = [name for key, name in right.items() if key not in left]
    tied = _ties(one, gone) if same else {}
    tied_there = _ties(other, new) if same else {}
    dropped = [name for name in gone if same and name in one.buffers]
    extra = {n: one.extras[n] for n in gone if n in one.extras and n not in {*tied, *dropped}}
    lost = [name for name in gone if name not in tied and name not in {*dropped, *extra}]
    computed = [name for name in new if same and name in other.buffers]
    known = {*tied_there, *computed}
    extra_there = {n: other.extras[n] for n in new if n in other.extras and n not in known}
    added = [name for name in new if name not in known and name not in extra_there]
    return Pairing(both, dropped, tied, extra, lost, added, computed, tied_there, extra_there)


def _ties(names: NamedTensors, chosen: list[str]) -> dict[str, str]:
    """Return selected names that may be absent -> twin, for those whose twin is present."""
    own = names.by_key()
    twins = {name: own.get(names.ties.get(names.keys[name], "")) for name in chosen}
    return {name: twin for name, twin in twins.items() if twin is not None}


def unpaired(
    pairing: Pairing, one: Mapping[str, str], other: Mapping[str, str], file: str, reference: str
) -> list[Check]:
    """Return a check for every tensor that is in only one of the files.

    `one` and `other` are digests by name, at least of the tensors that are not in both files.
    `file` is the second file; `reference` is the name of the first one in messages.
    """
    checks = [
        Check("drop", PASSED, "dropped: a computed buffer", file, name) for name in pairing.dropped
    ]
    checks += [
        Check("computed", PASSED, "a computed buffer; its values are not compared", file, name)
        for name in pairing.computed
    ]
    only_there = f"not in {reference}"
    for words, extras in (
        (f"only in {reference}", pairing.extra),
        (only_there, pairing.extra_there),
    ):
        for name, what in extras.items():
            detail = f"not compared: {words}; {what}, which state_dict() does not contain"
            checks.append(Check("not compared", NOTE, detail, file, name))
    for kind, digests, tied in (("lost", one, pairing.tied), ("added", other, pairing.tied_there)):
        for name, twin in tied.items():
            if digests[name] == digests[twin]:
                checks.append(Check("tie", PASSED, f"tied to {twin}", file, name))
            else:
                words = "missing" if kind == "lost" else only_there
                detail = f"{words}, and its values differ from those of {twin}"
                checks.append(Check(kind, FAILED, detail, file, name))
    moved = renamed({n: one[n] for n in pairing.lost}, {n: other[n] for n in pairing.added})
    for name, new in moved.items():
        detail = f"missing; {new}, which is {only_there}, has the same values"
        checks.append(Check("renamed", FAILED, detail, file, name))
    there = set(moved.values())
    gone = [name for name in pairing.lost if name not in moved]
    new_ones = [name for name in pairing.added if name not in there]
    checks += [Check("lost", FAILED, "missing", file, name) for name in gone]
    checks += [Check("added", FAILED, only_there, file, name) for name in new_ones]
    return checks


def renamed(lost: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Return lost name -> added name with the same digest, where the match is unambiguous.

    A match is unambiguous if no other tensor of either file has the digest. Among several
    candidates (zero biases, for example), the part of the name before a common end must change as
    in an unambiguous match:
    `model.fc.bias` -> `fc.bias` if `model.fc.weight` -> `fc.weight`.
    """
    gone, new = _by_digest(lost), _by_digest(added)
    twins = {
        names[0]: new[digest][0]
        for digest, names in gone.items()
        if len(names) == 1 == len(new.get(digest, ()))
    }
    changes = dict.fromkeys(_change(*pair) for pair in twins.items())
    taken = set(twins.values())
    for name, digest in lost.items():
        if name in twins:
            continue
        heads = [(old, head) for old, head in changes if name.startswith(old)]
        fits = {head + name.removeprefix(old): None for old, head in heads}
        fits = {n: None for n in fits if added.get(n) == digest and n not in taken}
        if len(fits) == 1:
            twins[name] = next(iter(fits))
            taken.add(twins[name])
    return {name: twins[name] for name in lost if name in twins}


def _by_digest(digests: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, digest in digests.items():
        names.setdefault(digest, []).append(name)
    return names


def _change(old: str, new: str) -> tuple[str, str]:
    """Return the parts of two names before their common end, in whole components."""
    left, right = old.split("."), new.split(".")
    same = 0
    for one, other in zip(reversed(left), reversed(right), strict=False):
        if one != other:
            break
        same += 1
    return _head(left[: len(left) - same]), _head(right[: len(right) - same])


def _head(parts: Iterable[str]) -> str:
    return "".join(f"{part}." for part in parts)

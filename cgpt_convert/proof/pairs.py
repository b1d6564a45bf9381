"""Which tensor of one file is which of another: by name, or by what it is in the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cgpt_convert.checks import FAILED, PASSED, Check


class Names(NamedTuple):
    """The tensors of a file by name; see `canonical.Weights` for what the fields are."""

    keys: Mapping[str, str]
    buffers: frozenset[str]
    ties: Mapping[str, str]
    architecture: str

    def by_key(self) -> dict[str, str]:
        """Key -> own name."""
        return {key: name for name, key in self.keys.items()}


class Pairing(NamedTuple):
    """Own names of two files' tensors: every name of either is in one field."""

    both: dict[str, str]  # name in the one file -> in the other
    dropped: list[str]  # only in the one: buffers, which are computed
    tied: dict[str, str]  # only in the one: what may be left out -> the twin that it must equal
    lost: list[str]  # only in the one
    added: list[str]  # only in the other
    computed: list[str]  # only in the other: buffers
    tied_there: dict[str, str]  # only in the other: as `tied`


def paired(one: Names, other: Names) -> Pairing:
    """The pairs, by key if both are of the same architecture, else by name."""
    same = one.architecture == other.architecture
    left = one.by_key() if same else {name: name for name in one.keys}
    right = other.by_key() if same else {name: name for name in other.keys}
    both = {name: right[key] for key, name in left.items() if key in right}
    gone = [name for key, name in left.items() if key not in right]
    new = [name for key, name in right.items() if key not in left]
    tied = _ties(one, gone) if same else {}
    tied_there = _ties(other, new) if same else {}
    dropped = [name for name in gone if same and name in one.buffers]
    lost = [name for name in gone if name not in tied and name not in dropped]
    computed = [name for name in new if same and name in other.buffers]
    added = [name for name in new if name not in tied_there and name not in computed]
    return Pairing(both, dropped, tied, lost, added, computed, tied_there)


def _ties(names: Names, chosen: list[str]) -> dict[str, str]:
    """Those of the chosen that may be left out, and the twin's name, if the twin is there."""
    own = names.by_key()
    twins = {name: own.get(names.ties.get(names.keys[name], "")) for name in chosen}
    return {name: twin for name, twin in twins.items() if twin is not None}


def unpaired(
    pairing: Pairing, one: Mapping[str, str], other: Mapping[str, str], file: str
) -> list[Check]:
    """A check for every tensor that is in one of two files only.

    `one` and `other` have digests by name, at least of the tensors that are not in both files.
    `file` is the other one.
    """
    checks = [
        Check("drop", PASSED, "dropped: computed, not learned", file, name)
        for name in pairing.dropped
    ]
    checks += [
        Check("computed", PASSED, "computed, not learned: its values are not compared", file, name)
        for name in pairing.computed
    ]
    for kind, digests, tied in (("lost", one, pairing.tied), ("added", other, pairing.tied_there)):
        for name, twin in tied.items():
            if digests[name] == digests[twin]:
                checks.append(Check("tie", PASSED, f"tied to {twin}", file, name))
            else:
                told = f"{kind}, and its values are not those of {twin}"
                checks.append(Check(kind, FAILED, told, file, name))
    moved = _renamed({n: one[n] for n in pairing.lost}, {n: other[n] for n in pairing.added})
    for name, new in moved.items():
        told = f"renamed: {new} has its values, which no rule says"
        checks.append(Check("renamed", FAILED, told, file, name))
    there = set(moved.values())
    gone = [name for name in pairing.lost if name not in moved]
    new_ones = [name for name in pairing.added if name not in there]
    checks += [Check("lost", FAILED, "lost: it is not there", file, name) for name in gone]
    checks += [Check("added", FAILED, "added: it should not be there", file, n) for n in new_ones]
    return checks


def _renamed(lost: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Lost name -> added name of the same digest, each once; both come with their digests."""
    free: dict[str, list[str]] = {}
    for name, digest in added.items():
        free.setdefault(digest, []).append(name)
    return {name: free[digest].pop(0) for name, digest in lost.items() if free.get(digest)}

"""The scope of a comparison: everything, or a selection by the user or the provenance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.checks import FAILED, NOTE, Check
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.core.text import printable
from cgpt_convert.core.threads import step
from cgpt_convert.targets.selection import (
    TensorSelection,
    choose_root,
    everything,
    no_match,
    under,
    wanted,
)
from cgpt_convert.verification.canonical_names import CanonicalWeights, weights
from cgpt_convert.verification.pairing import NamedTensors, Pairing, paired

_SHOWN = 10
OPTION, PROVENANCE = "option", "provenance"


class ComparedPart(NamedTuple):
    """The part of a file that is compared."""

    file: str
    root: str  # names are compared relative to this; "" for all
    compared: int
    outside: tuple[str, ...]  # names in the file of the tensors that are not compared


class Scope(NamedTuple):
    """The scope of a comparison, and its origin: an option, the provenance, or ""."""

    root: str
    wish: TensorSelection
    by: str
    parts: tuple[ComparedPart, ...] = ()

    def words(self) -> str:
        """Return the scope as a phrase; "" if it is everything."""
        words = [f"under {printable(self.root)!r}"] if self.root else []
        if self.by == PROVENANCE:
            words[0] += " (the root in the provenance metadata)"
        words += [f"matching {printable(glob)!r}" for glob in self.wish.match]
        words += [f"not matching {printable(glob)!r}" for glob in self.wish.exclude]
        return ", ".join(words)

    def checks(self, verb: str = "compared") -> list[Check]:
        """Return a note for each file with tensors that are not compared."""
        return [
            Check("scope", NOTE, counted_out(part, self.words(), verb), part.file)
            for part in self.parts
            if part.outside
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the scope as `--json` prints it; docs/reference/json.md lists the keys."""
        return {
            "root": self.root or None,
            "match": [*self.wish.match],
            "exclude": [*self.wish.exclude],
            "by": self.by or None,
            "files": [
                {
                    "file": part.file,
                    "root": part.root or None,
                    "compared": part.compared,
                    "tensors": part.compared + len(part.outside),
                    "not_compared": [*part.outside],
                }
                for part in self.parts
            ],
        }


def part_scope(chosen: CanonicalWeights, wish: TensorSelection) -> Scope:
    """Return the scope of a selection from one file."""
    by = OPTION if chosen.outside else ""
    part = ComparedPart(chosen.path, chosen.root, len(chosen.keys), chosen.outside)
    return Scope(chosen.root, wish, by, (part,))


def counted_out(part: ComparedPart, words: str, verb: str = "compared") -> str:
    """Return a line with the number of compared tensors and the names of the others."""
    total = part.compared + len(part.outside)
    where = f", {words}" if words else ""
    return (
        f"{verb} {part.compared:,} of {total:,} {'tensor' if total == 1 else 'tensors'}{where}; "
        f"not {verb}: {listed(part.outside)}"
    )


def listed(names: Iterable[str]) -> str:
    """Return the names as text; only the first ones if there are many."""
    names = [*names]
    shown = ", ".join(map(printable, names[:_SHOWN]))
    more = len(names) - _SHOWN
    return f"{shown} and {more:,} more (--json lists all)" if more > 0 else shown


class ComparedFiles(NamedTuple):
    """The tensors of two files, their pairing, and the scope of the comparison."""

    one: CanonicalWeights
    other: CanonicalWeights
    pairing: Pairing
    scope: Scope


def sides(
    source: Checkpoint, target: Checkpoint, wish: TensorSelection, claimed_root: str | None = None
) -> ComparedFiles:
    """Return the parts of SOURCE and TARGET to compare.

    By default both are compared completely. With a root, the tensors under it in SOURCE are
    compared with all of TARGET or with the same root there, whichever matches better; with globs,
    those whose names in SOURCE match. `claimed_root` is the root in TARGET's provenance metadata,
    used if the user gives none. If names are changed, all of TARGET is compared with the tensors
    that `convert` would write from SOURCE.
    """
    with step("matching tensor names"):
        if wish.rename:
            return _renamed_sides(source, target, wish, claimed_root)
        return _sides(source, target, wish, claimed_root)


def _sides(
    source: Checkpoint, target: Checkpoint, wish: TensorSelection, claimed_root: str | None
) -> ComparedFiles:
    if wish.root is None and claimed_root:
        fits = [weights(source), *part_under(source, claimed_root)]
        other = weights(target)
        one = best(fits, other.names, same_layout=claimed_root in source.containers)
        by = PROVENANCE if one.root else ""
    else:
        one = weights(source, TensorSelection(wish.root))
        other = weights(target)
        if one.root:
            names = {*everything(source)} == {*everything(target)}
            same = names or one.root in target.containers
            other = best([other, *part_under(target, one.root)], one.names, same_layout=same)
        by = OPTION if one.root or wish.match or wish.exclude else ""
    return restricted(one, other, wish, by)


def _renamed_sides(
    source: Checkpoint, target: Checkpoint, wish: TensorSelection, claimed_root: str | None
) -> ComparedFiles:
    root, by = wish.root, OPTION
    if root is None and claimed_root and under(source, claimed_root):
        root, by = claimed_root, PROVENANCE
    one = weights(source, wish._replace(root=root), extras=False)
    other = weights(target)
    if not one.outside:
        by = ""
    pairing = paired(one.names, other.names)
    parts = (part_of(one, pairing.names()), part_of(other, pairing.names_there()))
    return ComparedFiles(one, other, pairing, Scope(one.root, wish, by, parts))


def restricted(
    one: CanonicalWeights, other: CanonicalWeights, wish: TensorSelection, by: str
) -> ComparedFiles:
    """Return the two sides with the globs of `wish` applied. BadRequest if nothing matches."""
    pairing = paired(one.names, other.names)
    if wish.match or wish.exclude:

        def fits(name: str) -> bool:
            return wanted(name, wish.match, wish.exclude)

        pairing = pairing.within(fits, fits)
        if not pairing.names():
            raise no_match(one.path, [*one.keys])
    parts = (part_of(one, pairing.names()), part_of(other, pairing.names_there()))
    return ComparedFiles(one, other, pairing, Scope(one.root, wish, by, parts))


def part_of(side: CanonicalWeights, names: Iterable[str]) -> ComparedPart:
    """Return the compared part of a file, for compared `names` relative to the root."""
    inside = {*names}
    left = tuple(side.full_name(name) for name in side.keys if name not in inside)
    return ComparedPart(side.path, side.root, len(inside), (*left, *side.outside))


def part_under(checkpoint: Checkpoint, root: str) -> list[CanonicalWeights]:
    """Return the tensors under the root as a list of one item; empty if there are none."""
    return [weights(checkpoint, TensorSelection(root))] if under(checkpoint, root) else []


def best(
    candidates: list[CanonicalWeights], names: NamedTensors, *, same_layout: bool = False
) -> CanonicalWeights:
    """Return the candidate with the most names in common; the first of several.

    With `same_layout`, the last of several.
    """

    def common(candidate: CanonicalWeights) -> int:
        return len(paired(candidate.names, names).both)

    ordered = candidates[::-1] if same_layout else candidates
    return max(ordered, key=common)


def hint(source: Checkpoint, checks: Iterable[Check], scope: Scope) -> list[Check]:
    """Return a note on `--root` if all of SOURCE was compared and it has a default root."""
    missing = any(c.outcome == FAILED and c.name in ("lost", "added", "renamed") for c in checks)
    if not missing or scope.root or scope.wish.root is not None:
        return []
    try:
        root = choose_root(source)
    except BadRequest:
        return []
    return [root_hint(source.path, root, len(under(source, root)))] if root else []


def root_hint(path: str, root: str, count: int) -> Check:
    """Return the note that the `count` tensors under a root can be compared alone."""
    hint = (
        f"all tensors of {printable(path)} were compared; {count:,} of them are under "
        f"{printable(root)!r}: use --root {printable(root)} to compare only these"
    )
    return Check("scope", NOTE, hint, path)

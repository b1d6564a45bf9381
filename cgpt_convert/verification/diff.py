"""Which tensors of two files differ, and by how much: for people who look at a change."""

from __future__ import annotations

from typing import NamedTuple

from cgpt_convert.core.checks import ERROR, FAILED, PASSED
from cgpt_convert.core.events import Advance, untold
from cgpt_convert.tensors.tensor import Tensor
from cgpt_convert.verification import composite_pairs as odd_pairs
from cgpt_convert.verification.canonical_names import Weights, aligned
from cgpt_convert.verification.composite_digests import described
from cgpt_convert.verification.digests import digests_of
from cgpt_convert.verification.pairing import renamed
from cgpt_convert.verification.parallel import in_pairs
from cgpt_convert.verification.scope import Sides

EQUAL, RENAMED, CHANGED, ADDED, REMOVED = "equal", "renamed", "changed", "added", "removed"
LEFT_OUT = "left out"  # a computed buffer, a tied tensor, or not in state_dict(): in one file only
NOT_COMPARED = "not compared"  # the values are not known, or in neither file


class Row(NamedTuple):
    """A tensor of either file. What cannot be measured is None."""

    state: str
    before: str  # its name in the first file, "" if it is not there
    after: str
    dtypes: tuple[str, ...] = ()  # first file's, second's
    shapes: tuple[tuple[int, ...], ...] = ()
    numel: int | None = None  # elements compared
    differing: int | None = None  # of those
    most: float | None = None  # the greatest |difference|
    cosine: float | None = None
    unknown: bool = False  # not compared, as it is not known what the value is

    @property
    def differs(self) -> bool:
        """Are the weights different ones by this?"""
        return self.state in (CHANGED, ADDED, REMOVED)


def diff(sides: Sides, jobs: int = 0, advance: Advance = untold) -> list[Row]:
    """Return a row for every tensor of either in the scope, in the order of the first file.

    Added ones are last. Renamed is the same tensor of the architecture under another name, or one
    that clearly has the values of one that is gone. Raises Malformed where bytes do not match the
    checksum that a file records.
    """
    one, other, pairing, _scope = sides
    lost, added = digests_of(one, pairing.lost, jobs), digests_of(other, pairing.added, jobs)
    pairs = pairing.both | renamed(lost, added)
    dense = {n: own for n, own in pairs.items() if n in one.tensors and own in other.tensors}
    rows = in_pairs(dense, aligned(one, other, dense)[0], other, _compared, jobs, advance)
    rows |= _odd({n: own for n, own in pairs.items() if n not in dense}, one, other, jobs)
    neutral = {*pairing.dropped, *pairing.extra, *_equal_ties(one, pairing.tied, jobs)}
    for name in pairing.names():
        if name not in rows:
            rows[name] = Row(LEFT_OUT if name in neutral else REMOVED, name, "")
    neutral_there = {
        *pairing.computed,
        *pairing.extra_there,
        *_equal_ties(other, pairing.tied_there, jobs),
    }
    found = [rows[name] for name in one.keys if name in rows]
    inside = {*pairing.names_there()} - {*pairs.values()}
    return found + [
        Row(LEFT_OUT if name in neutral_there else ADDED, "", name)
        for name in other.keys
        if name in inside
    ]


def _odd(pairs: dict[str, str], one: Weights, other: Weights, jobs: int) -> dict[str, Row]:
    """Compare the pairs of which one is not a dense view."""
    rows = {}
    for name, (outcome, _told) in odd_pairs.compared(pairs, one, other, jobs).items():
        own = pairs[name]
        state = EQUAL if name == own else RENAMED
        if outcome != PASSED:
            state = CHANGED if outcome == FAILED else NOT_COMPARED
        left, right = described(one, name), described(other, own)
        row = Row(state, name, own, (left[0], right[0]), (left[1], right[1]))
        rows[name] = row._replace(unknown=outcome == ERROR)
    return rows


def _compared(one: Tensor, other: Tensor) -> Row:
    from cgpt_convert.tensors.compare import bits, values

    dtypes, shapes = (one.dtype.name, other.dtype.name), (one.shape, other.shape)
    row = Row(CHANGED, one.name, other.name, dtypes, shapes)
    if one.shape != other.shape:
        return row
    if one.dtype == other.dtype and one.quantizer == other.quantizer:
        found = bits(one, other)
        row = row._replace(numel=one.numel, differing=found.differing)
        if not found.differing:
            state = EQUAL if one.name == other.name else RENAMED
            return row._replace(state=state, most=0.0)
    apart = values(one, other)
    if apart is None:
        return row
    differing = apart.differing if row.differing is None else row.differing
    return row._replace(numel=one.numel, differing=differing, most=apart.most, cosine=apart.cosine)


def _equal_ties(weights: Weights, tied: dict[str, str], jobs: int) -> set[str]:
    """Those of the tied names whose values are their twin's."""
    digests = digests_of(weights, [*tied, *tied.values()], jobs)
    return {name for name, twin in tied.items() if digests[name] == digests[twin]}

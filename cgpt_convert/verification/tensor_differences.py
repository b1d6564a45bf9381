"""Differences between the tensors of two files, and their size, for human review."""

from __future__ import annotations

from typing import NamedTuple

from cgpt_convert.core.checks import ERROR, FAILED, PASSED
from cgpt_convert.core.threads import Advance, untold
from cgpt_convert.tensors.tensor import Tensor
from cgpt_convert.verification import composite_pairs
from cgpt_convert.verification.canonical_names import CanonicalWeights, aligned
from cgpt_convert.verification.digests import described, digests_of
from cgpt_convert.verification.pairing import renamed
from cgpt_convert.verification.parallel import in_pairs
from cgpt_convert.verification.scope import ComparedFiles

EQUAL, RENAMED, CHANGED, ADDED, REMOVED = "equal", "renamed", "changed", "added", "removed"
LEFT_OUT = "left out"  # in one file only: a computed buffer, a tied tensor, or not in state_dict()
NOT_COMPARED = "not compared"  # the values are unknown, or in neither file


class TensorDifference(NamedTuple):
    """A tensor of either file. Values that cannot be measured are None."""

    state: str
    before: str  # its name in the first file, "" if absent
    after: str
    dtypes: tuple[str, ...] = ()  # of the first and the second file
    shapes: tuple[tuple[int, ...], ...] = ()
    numel: int | None = None  # elements compared
    differing: int | None = None  # number of differing elements
    most: float | None = None  # the maximum |difference|
    cosine: float | None = None
    unknown: bool = False  # not compared because the value is unknown

    @property
    def differs(self) -> bool:
        """Whether this row means that the weights differ."""
        return self.state in (CHANGED, ADDED, REMOVED)


def diff(sides: ComparedFiles, jobs: int = 0, advance: Advance = untold) -> list[TensorDifference]:
    """Return a row for every tensor in the scope, in the order of the first file.

    Added tensors come last. A renamed tensor has the same role in the architecture under another
    name, or unambiguously the values of a removed one. Raises Malformed if data does not match the
    checksum in a file.
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
            rows[name] = TensorDifference(LEFT_OUT if name in neutral else REMOVED, name, "")
    neutral_there = {
        *pairing.computed,
        *pairing.extra_there,
        *_equal_ties(other, pairing.tied_there, jobs),
    }
    ordered = [rows[name] for name in one.keys if name in rows]
    inside = {*pairing.names_there()} - {*pairs.values()}
    return ordered + [
        TensorDifference(LEFT_OUT if name in neutral_there else ADDED, "", name)
        for name in other.keys
        if name in inside
    ]


def _odd(
    pairs: dict[str, str], one: CanonicalWeights, other: CanonicalWeights, jobs: int
) -> dict[str, TensorDifference]:
    """Compare the pairs in which at least one tensor is not a dense view."""
    rows = {}
    for name, (outcome, _told) in composite_pairs.compared(pairs, one, other, jobs).items():
        own = pairs[name]
        state = EQUAL if name == own else RENAMED
        if outcome != PASSED:
            state = CHANGED if outcome == FAILED else NOT_COMPARED
        left, right = described(one, name), described(other, own)
        row = TensorDifference(state, name, own, (left[0], right[0]), (left[1], right[1]))
        rows[name] = row._replace(unknown=outcome == ERROR)
    return rows


def _compared(one: Tensor, other: Tensor) -> TensorDifference:
    from cgpt_convert.tensors.element_differences import bits, values

    dtypes, shapes = (one.dtype.name, other.dtype.name), (one.shape, other.shape)
    row = TensorDifference(CHANGED, one.name, other.name, dtypes, shapes)
    if one.shape != other.shape:
        return row
    if one.dtype == other.dtype and one.quantizer == other.quantizer:
        differences = bits(one, other)
        row = row._replace(numel=one.numel, differing=differences.differing)
        if not differences.differing:
            state = EQUAL if one.name == other.name else RENAMED
            return row._replace(state=state, most=0.0)
    apart = values(one, other)
    if apart is None:
        return row
    differing = apart.differing if row.differing is None else row.differing
    return row._replace(numel=one.numel, differing=differing, most=apart.most, cosine=apart.cosine)


def _equal_ties(weights: CanonicalWeights, tied: dict[str, str], jobs: int) -> set[str]:
    """Return the tied names whose values equal their twin's."""
    digests = digests_of(weights, [*tied, *tied.values()], jobs)
    return {name for name, twin in tied.items() if digests[name] == digests[twin]}

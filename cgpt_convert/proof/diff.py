"""Which tensors of two files differ, and by how much: for people who look at a change."""

from __future__ import annotations

from typing import NamedTuple

from cgpt_convert.output.checksums import Advance, untold
from cgpt_convert.proof.canonical import Weights
from cgpt_convert.proof.comparing import in_pairs
from cgpt_convert.proof.digests import digests_of
from cgpt_convert.proof.pairs import paired
from cgpt_convert.tensor import Tensor

EQUAL, RENAMED, CHANGED, ADDED, REMOVED = "equal", "renamed", "changed", "added", "removed"
LEFT_OUT = "left out"  # a computed buffer or a tied tensor, which a model needs not


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

    @property
    def differs(self) -> bool:
        """Are the weights different ones by this?"""
        return self.state in (CHANGED, ADDED, REMOVED)


def diff(one: Weights, other: Weights, jobs: int = 0, advance: Advance = untold) -> list[Row]:
    """A row for every tensor of either, in the order of the first, added ones last.

    Renamed is what is the same tensor of the architecture under another name, or has the very
    values of one that is gone. Raises Malformed where bytes do not match the checksum that a file
    records.
    """
    pairing = paired(one.names, other.names)
    digests = digests_of(one, pairing.lost, jobs), digests_of(other, pairing.added, jobs)
    moved: dict[str, str] = {}
    free = {digest: name for name, digest in digests[1].items()}
    for name, digest in digests[0].items():
        if digest in free:
            moved[name] = free.pop(digest)
    pairs = pairing.both | moved
    rows = in_pairs(pairs, one, other, _compared, jobs, advance)
    neutral = {*pairing.dropped, *_equal_ties(one, pairing.tied, jobs)}
    for name in one.tensors:
        if name not in rows:
            rows[name] = Row(LEFT_OUT if name in neutral else REMOVED, name, "")
    ties = _equal_ties(other, pairing.tied_there, jobs)
    found = [rows[name] for name in one.tensors]
    there = {*pairs.values()}
    new = (name for name in other.tensors if name not in there)
    return found + [
        Row(LEFT_OUT if name in ties or name in other.buffers else ADDED, "", name) for name in new
    ]


def _compared(one: Tensor, other: Tensor) -> Row:
    from cgpt_convert.values.compare import bits, values

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

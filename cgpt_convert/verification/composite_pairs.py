"""Compare pairs in which a tensor is not a dense view, by description and digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cgpt_convert.checkpoint import CompositeTensor
from cgpt_convert.core.checks import ERROR, FAILED, NOTE, PASSED, Check
from cgpt_convert.tensors.shapes import dims
from cgpt_convert.verification.canonical_names import UNSAVED, CanonicalWeights
from cgpt_convert.verification.digests import digest, hashed, is_unknown, parts, same_bytes

_SAME_FILES = "; the files are identical"


def compared(
    pairs: Mapping[str, str], one: CanonicalWeights, other: CanonicalWeights, jobs: int = 0
) -> dict[str, tuple[str, str]]:
    """Return outcome and message of each pair, by the first name.

    The outcome is PASSED, FAILED, NOTE (a kind without values, such as meta), or ERROR (the tensor
    cannot be compared, and the files are not identical).
    """
    if not pairs:
        return {}
    results = {}
    names = [name for name in pairs if name in one.odd]
    there = [own for own in pairs.values() if own in other.odd]
    digests = hashed([*parts(one, names), *parts(other, there)], jobs)
    same = False
    if any(_has_no_known_value(side.odd[n]) for n, side in _strange(pairs, one, other)):
        same = same_bytes(one.sources, other.sources, jobs)
    for name, own in pairs.items():
        left, right = one.odd.get(name), other.odd.get(own)
        unknown = [each for each in (left, right) if each and is_unknown(each)]
        if left and right and left.kind == right.kind == UNSAVED:
            unknown = [right]
        if unknown and same and name == own:
            results[name] = (PASSED, f"{unknown[0].detail}{_SAME_FILES}")
        elif unknown:
            results[name] = (ERROR, f"not compared: {unknown[0].detail}; skip it with --exclude")
        elif left is None or right is None:
            kinds = _kind(other, own), _kind(one, name)
            results[name] = (FAILED, f"{kinds[0]}, expected {kinds[1]}")
        elif digest(left, digests) != digest(right, digests):
            results[name] = (FAILED, _difference(left, right))
        elif left.parts:
            results[name] = (PASSED, "identity")
        else:
            results[name] = (NOTE, f"not compared: {left.kind}, {_why(name, one)}")
    return results


def _why(name: str, weights: CanonicalWeights) -> str:
    """Return why a tensor without components is not compared."""
    if any(other.startswith(f"{name}.") for other in weights.keys):
        return "its tensors are compared under their own names"
    return "its values are in neither file"


def _strange(
    pairs: Mapping[str, str], one: CanonicalWeights, other: CanonicalWeights
) -> Iterator[tuple[str, CanonicalWeights]]:
    yield from ((name, one) for name in pairs if name in one.odd)
    yield from ((own, other) for own in pairs.values() if own in other.odd)


def _has_no_known_value(exotic: CompositeTensor) -> bool:
    """Return whether the value is unknown or was never saved."""
    return is_unknown(exotic) or exotic.kind == UNSAVED


def checks(
    results: Mapping[str, tuple[str, str]], file: str, pairs: Mapping[str, str]
) -> list[Check]:
    """Return a check for each pair."""
    word = {ERROR: "not compared", NOTE: "not compared"}
    return [
        Check(word.get(outcome, "bytes"), outcome, detail, file, pairs[name])
        for name, (outcome, detail) in results.items()
    ]


def is_unread(check: Check) -> bool:
    """Return whether a tensor passed that cannot be read, because the files are identical."""
    return check.outcome == PASSED and check.detail.endswith(_SAME_FILES)


def _kind(weights: CanonicalWeights, name: str) -> str:
    odd = weights.odd.get(name)
    return f"{odd.kind} {odd.dtype}" if odd else f"dense {weights.tensors[name].stored.name}"


def _difference(one: CompositeTensor, other: CompositeTensor) -> str:
    if (one.kind, one.dtype) != (other.kind, other.dtype):
        return f"{other.kind} {other.dtype}, expected {one.kind} {one.dtype}"
    if one.shape != other.shape:
        return f"shape {dims(other.shape)}, expected {dims(one.shape)}"
    if one.detail != other.detail:
        return f"{other.detail}, expected {one.detail}"
    return f"{one.kind}: the values differ"

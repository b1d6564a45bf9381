"""Compare converted weights with their source, and determine each tensor's transforms.

Casts and quantizations are not compared within a tolerance: they are recomputed from the source,
and every bit must be equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cgpt_convert.core.checks import FAILED, PASSED, Check
from cgpt_convert.core.threads import Advance, untold
from cgpt_convert.tensors.dtypes import CASTS
from cgpt_convert.tensors.shapes import dims, in_blocks
from cgpt_convert.tensors.tensor import Tensor, replace
from cgpt_convert.verification import composite_pairs
from cgpt_convert.verification.canonical_names import CanonicalWeights, aligned
from cgpt_convert.verification.digests import digests_of, hashed
from cgpt_convert.verification.pairing import Pairing, unpaired
from cgpt_convert.verification.parallel import in_pairs
from cgpt_convert.verification.scope import ComparedFiles


class ExpectedTensor(NamedTuple):
    """A tensor in a file, and its expected value; `steps` are the transforms from the source."""

    held: Tensor
    expected: Tensor
    steps: tuple[str, ...]


def against_source(sides: ComparedFiles, jobs: int = 0, advance: Advance = untold) -> list[Check]:
    """Return a check for each tensor of either file; `detail` names its transforms.

    The transforms are identity, rename, transpose, cast, quantize, dequantize, drop (of computed
    buffers) and tie. Anything else is a difference. Raises Malformed if data does not match the
    checksum in a file.
    """
    source, target, pairing, _scope = sides
    dense = {
        name: own
        for name, own in pairing.both.items()
        if name in source.tensors and own in target.tensors
    }

    one, other = _digests(source, target, pairing, jobs)
    source, turned = aligned(source, target, dense)

    def check(one: Tensor, other: Tensor) -> Check:
        before = one.renamed(source.old_name(one.name))
        result = _check(before, other, target, turned=one.name in turned)
        return result._replace(tensor=target.name_in_file(other.name))

    checks = [*in_pairs(dense, source, target, check, jobs, advance).values()]
    _tell_swapped(checks, source, target, dense, jobs)
    rest = {name: own for name, own in pairing.both.items() if name not in dense}
    checks += composite_pairs.checks(
        composite_pairs.compared(rest, source, target, jobs), target.path, rest
    )
    for tensor in (*source.tensors.values(), *target.tensors.values()):
        tensor.storage.source.check_unchanged()
    return checks + unpaired(pairing, one, other, target.path, "SOURCE")


def transform(
    source: Tensor, target: Tensor, weights: CanonicalWeights, *, turned: bool = False
) -> ExpectedTensor | str:
    """Return the transforms from a source tensor to one of `weights`, or why there are none.

    Both are in the same layout; `turned` states whether the source was transposed for that.
    """
    steps = ("rename",) if source.name != weights.name_in_file(target.name) else ()
    if source.shape != target.shape:
        return f"shape {dims(target.shape)}, expected {dims(source.shape)}"
    stored_target = replace(target, target=None)
    if stored_target.stored == source.stored:
        source = replace(source, target=None)
    if weights.format == "gguf" and not stored_target.is_c_order:
        stored_target, source = stored_target.transposed(), source.transposed()
        turned = not turned  # transposed back, or for the first time
    if turned:
        steps = (*steps, "transpose")
    if source.stored.block > 1 and source.target:
        steps = (*steps, f"dequantize {source.stored.name}")
    if stored_target.quantizer != source.quantizer:
        return (
            f"quantizer {stored_target.quantizer or 'none'}, expected {source.quantizer or 'none'}"
        )
    if stored_target.dtype == source.dtype:
        return ExpectedTensor(stored_target, source, steps or ("identity",))
    blocks = stored_target.dtype.block > 1
    if not (source.dtype.casts and (blocks or stored_target.dtype.name in CASTS)):
        return f"{stored_target.dtype.name}, expected {source.dtype.name}"
    if not in_blocks(stored_target.dtype, source.shape):
        return f"{stored_target.dtype.name}, but the rows cannot be divided into its blocks"
    word = "quantize" if blocks else "cast"
    return ExpectedTensor(
        stored_target,
        source.cast(stored_target.dtype),
        (*steps, f"{word} {stored_target.dtype.name}"),
    )


def _check(source: Tensor, target: Tensor, weights: CanonicalWeights, *, turned: bool) -> Check:
    from cgpt_convert.tensors.element_differences import bits, values

    step = transform(source, target, weights, turned=turned)
    file, name = weights.path, target.name
    if isinstance(step, str):
        return Check("shape" if step.startswith("shape") else "dtype", FAILED, step, file, name)
    differences = bits(step.held, step.expected)
    detail = ", ".join(step.steps)
    if differences.differing:
        what = "blocks" if step.held.dtype.block > 1 else "elements"
        detail += (
            f": {differences.differing:,} of {differences.units:,} {what} differ, the first at "
        )
        detail += f"{differences.first:,}{_how(source, target, step)}"
        return Check("bytes", FAILED, detail, file, name)
    if step.held.dtype.block > 1 and step.expected.stored != step.held.stored:
        apart = values(target, source)
        if apart is not None:
            detail += f", max |error| {apart.most:.3g}, rms {apart.rms:.3g}"
    return Check("bytes", PASSED, detail, file, name)


def _how(source: Tensor, target: Tensor, step: ExpectedTensor) -> str:
    """Describe the difference between the values, if possible."""
    from cgpt_convert.tensors.element_differences import bits, values

    expected = step.expected
    square = len(expected.shape) > 1 and expected.shape == expected.shape[::-1]
    if square and not bits(step.held, expected.transposed()).differing:
        return "; the values are transposed"
    apart = values(target, source)
    if apart is None:
        return ""
    if not apart.differing:
        return "; equal in value (signs of zeros or bits of NaN differ)"
    return f"; max |difference| {apart.most:.3g}"


def _digests(
    source: CanonicalWeights, target: CanonicalWeights, pairing: Pairing, jobs: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the digests, by name, of unpaired tensors of the source and of the target."""
    names = (*pairing.lost, *_both_of(pairing.tied))
    there = (*pairing.added, *_both_of(pairing.tied_there))
    return digests_of(source, names, jobs), digests_of(target, there, jobs)


def _both_of(tied: dict[str, str]) -> Iterator[str]:
    for pair in tied.items():
        yield from pair


def _tell_swapped(
    checks: list[Check],
    source: CanonicalWeights,
    target: CanonicalWeights,
    pairs: Mapping[str, str],
    jobs: int,
) -> None:
    """Add the owner to failed checks of tensors that have another failed tensor's values."""
    steps: dict[str, ExpectedTensor] = {}
    for check, (name, own) in zip(checks, pairs.items(), strict=True):
        step = transform(source.tensors[name], target.tensors[own], target)
        if check.outcome == FAILED and isinstance(step, ExpectedTensor):
            steps[name] = step
    digests = hashed([each for step in steps.values() for each in step[:2]], jobs)
    owners = {digests[step.expected.content]: name for name, step in steps.items()}
    for at, name in enumerate(pairs):
        owner = owners.get(digests[steps[name].held.content]) if name in steps else None
        if owner is not None:
            checks[at] = checks[at]._replace(
                detail=f"{checks[at].detail}; it has the values of {owner}"
            )

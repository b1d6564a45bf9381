"""Weights against a lock: complete both ways, and every bit as it was when it was locked."""

from __future__ import annotations

from cgpt_convert.checks import FAILED, PASSED, Check
from cgpt_convert.mapping.architecture import architectures
from cgpt_convert.output.checksums import Advance, untold
from cgpt_convert.proof.canonical import Weights
from cgpt_convert.proof.digests import digested
from cgpt_convert.proof.lock import Lock, Row
from cgpt_convert.proof.pairs import Names, paired, unpaired
from cgpt_convert.shapes import dims
from cgpt_convert.tensor import Tensor


def against_lock(
    weights: Weights, lock: Lock, jobs: int = 0, advance: Advance = untold
) -> list[Check]:
    """A check for each tensor that is locked or that is there."""
    digests = digested(weights, jobs, advance).tensors
    locked = {name: row.sha256 for name, row in lock.tensors.items()}
    pairing = paired(_names(lock), weights.names)
    checks = [
        _check(lock.tensors[name], weights.tensors[own], digests[own], weights.path)
        for name, own in pairing.both.items()
    ]
    return checks + unpaired(pairing, locked, digests, weights.path)


def _names(lock: Lock) -> Names:
    known = architectures().get(lock.architecture)
    rows = lock.tensors.items()
    return Names(
        {name: row.key for name, row in rows},
        frozenset(name for name, row in rows if row.buffer),
        known.ties if known else {},
        lock.architecture,
    )


def _check(row: Row, tensor: Tensor, digest: str, file: str) -> Check:
    if digest == row.sha256:
        return Check("digest", PASSED, "as locked", file, tensor.name)
    if tensor.shape != row.shape:
        told = f"shape {dims(tensor.shape)}, locked {dims(row.shape)}"
        return Check("shape", FAILED, told, file, tensor.name)
    if (tensor.dtype.name, tensor.stored.block) != (row.dtype, 1):
        told = f"{tensor.stored.name}, locked {row.dtype}; a lock has no values to cast: "
        told += "compare with the source, or lock this file itself"
        return Check("dtype", FAILED, told, file, tensor.name)
    told = f"sha256 {digest}, locked {row.sha256}"
    return Check("digest", FAILED, told, file, tensor.name)

"""Compare a checkpoint with its source, with a lock, or with its own provenance metadata."""

from __future__ import annotations

from collections.abc import Mapping

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.checks import Check
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.threads import Progress, no_progress
from cgpt_convert.targets.selection import TensorSelection
from cgpt_convert.tensors.tensor import Tensor
from cgpt_convert.verification.check_lock import against_lock, lock_hint, lock_sides
from cgpt_convert.verification.check_provenance import (
    against_claim,
    against_mapping,
    declared,
    source_of,
)
from cgpt_convert.verification.check_source import against_source
from cgpt_convert.verification.lock_file import read_lock
from cgpt_convert.verification.provenance import claimed, claimed_root
from cgpt_convert.verification.scope import Scope, hint, sides


def against_lock_file(
    target: Checkpoint,
    path: str,
    wish: TensorSelection,
    jobs: int = 0,
    progress: Progress = no_progress,
) -> tuple[list[Check], Scope]:
    """Compare with the lock in the file at `path`; return the checks and their scope."""
    lock = read_lock(path)
    sides = lock_sides(lock, path, target, wish, claimed_root(target))
    with progress("verifying", _nbytes(sides.target.tensors)) as advance:
        checks = against_lock(sides, jobs, advance)
    return checks + lock_hint(lock, path, checks, sides.scope), sides.scope


def against_original(
    source: Checkpoint,
    target: Checkpoint,
    wish: TensorSelection,
    jobs: int = 0,
    progress: Progress = no_progress,
) -> tuple[list[Check], Scope]:
    """Compare with the source, and the provenance metadata of the target with both."""
    claim = claimed(target)
    if claim == claimed(source):  # the same file, or a copy of it: its source is an earlier one
        claim = None
    both = sides(source, target, wish, claim.root if claim else None)
    with progress("verifying", _nbytes(both.other.tensors)) as advance:
        checks = against_source(both, jobs, advance)
    if claim is not None:
        with progress("hashing", _nbytes(both.one.tensors)) as advance:
            origin = source_of(claim, both, target.path, jobs, advance)
            checks = declared(checks, claim) + origin
    return checks + hint(source, checks, both.scope), both.scope


def against_itself(
    target: Checkpoint, jobs: int = 0, progress: Progress = no_progress
) -> list[Check]:
    """Compare with the target's own provenance metadata, or the digests in its mapping.

    Raises Unsupported if it contains neither.
    """
    claim = claimed(target)
    nbytes = _nbytes(target)
    if claim is not None:
        with progress("verifying", nbytes) as advance:
            return against_claim(target, claim, jobs, advance)
    with progress("verifying", nbytes) as advance:
        checks = against_mapping(target, jobs, advance)
    if not checks:
        raise Unsupported(
            "the file contains no provenance metadata to verify",
            where=target.path,
            hint="pass the source (verify SOURCE TARGET) or a lock (--lock FILE)",
        )
    return checks


def _nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())

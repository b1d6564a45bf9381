"""Compare weights with a lock: every tensor of either side, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cgpt_convert.architectures.schema import architectures
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.checks import ERROR, FAILED, NOTE, PASSED, Check
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.core.text import printable, quoted
from cgpt_convert.core.threads import Advance, untold
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.targets.selection import (
    WELL_KNOWN_ROOTS,
    TensorSelection,
    choose_root,
    everything,
    is_under,
    no_match,
    relative,
    under,
    wanted,
)
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.shapes import c_strides, dims
from cgpt_convert.tensors.tensor import Storage, Tensor
from cgpt_convert.verification import digests
from cgpt_convert.verification.canonical_names import CanonicalWeights, named, weights
from cgpt_convert.verification.digests import digests_of
from cgpt_convert.verification.lock_file import Lock, LockedTensor
from cgpt_convert.verification.pairing import NamedTensors, Pairing, paired, unpaired
from cgpt_convert.verification.scope import (
    OPTION,
    PROVENANCE,
    ComparedPart,
    Scope,
    best,
    part_of,
    part_under,
    root_hint,
)


class LockedTensors(NamedTuple):
    """The tensors of a lock, or those under one of its roots."""

    rows: dict[str, LockedTensor]  # by name relative to the root
    names: NamedTensors
    root: str


class LockSides(NamedTuple):
    """A lock and a file, the pairing of their tensors, and the scope of the comparison."""

    locked: LockedTensors
    target: CanonicalWeights
    pairing: Pairing
    scope: Scope


def lock_sides(
    lock: Lock,
    path: str,
    target: Checkpoint,
    wish: TensorSelection,
    claimed_root: str | None = None,
) -> LockSides:
    """Return the parts of the lock, read from `path`, and of TARGET to compare.

    By default both are compared completely; with a root, the tensors under it on each side that has
    such names. `claimed_root` is the root in TARGET's provenance metadata, used if the user gives
    none.
    """
    taken = lock.scope or TensorSelection()
    root, by = (wish.root or "").removeprefix("."), ""
    other = weights(target)
    locked = _whole(lock)
    if root:
        locked = _narrowed(lock, root, target) or locked
        by = OPTION
    elif claimed_root and wish.root is None:
        fits = [locked, *([part] if (part := _narrowed(lock, claimed_root, target)) else [])]
        locked = max(fits, key=lambda fit: len(paired(fit.names, other.names).both))
        root, by = (claimed_root, PROVENANCE) if locked.root else ("", "")
    within = root if by == OPTION else taken.root or ("" if lock.scope else _usual_root(target))
    inside = part_under(target, within) if within else []
    if by == OPTION and not inside and not locked.root and taken.root != root:
        raise BadRequest(
            f"there are no tensors under {quoted(root)}, nor in the lock",
            where=target.path,
            hint="pass another --root; inspect shows the names",
        )
    same = within in target.containers
    other = best([other, *inside], locked.names, same_layout=same)
    return _restricted(lock, path, locked, other, wish, Scope(locked.root or other.root, wish, by))


def _usual_root(checkpoint: Checkpoint) -> str:
    """Return the default root, which a lock without a recorded scope would have used."""
    try:
        return choose_root(checkpoint)
    except BadRequest:
        return ""


def _restricted(
    lock: Lock,
    path: str,
    locked: LockedTensors,
    other: CanonicalWeights,
    wish: TensorSelection,
    scope: Scope,
) -> LockSides:
    taken = lock.scope or TensorSelection()
    pairing = paired(locked.names, other.names)

    def fits(name: str) -> bool:
        return wanted(name, wish.match, wish.exclude)

    def fits_there(name: str) -> bool:
        return fits(name) and wanted(name, taken.match, taken.exclude)

    pairing = pairing.within(fits, fits_there)
    if not pairing.names():
        raise no_match(path, [*locked.rows])
    inside = {*pairing.names()}
    full = {f"{locked.root}.{name}" if locked.root else name: name for name in locked.rows}
    left = [name for name, own in full.items() if own not in inside]
    left += [name for name in lock.tensors if name not in full]
    if (wish.match or wish.exclude or lock.outside) and not scope.by:
        scope = scope._replace(by=OPTION)
    if not (wish.match or wish.exclude):  # the globs of the lock
        scope = scope._replace(wish=taken._replace(root=wish.root))
    parts = (
        ComparedPart(path, locked.root, len(inside), (*left, *lock.outside)),
        part_of(other, pairing.names_there()),
    )
    return LockSides(locked, other, pairing, scope._replace(parts=parts))


def against_lock(sides: LockSides, jobs: int = 0, advance: Advance = untold) -> list[Check]:
    """Return a check for each tensor in the scope that is locked or in the file."""
    locked, target, pairing, _scope = sides
    own_names = [*pairing.both.values(), *pairing.added, *_both_of(pairing.tied_there)]
    digests = digests_of(target, dict.fromkeys(own_names), jobs, advance)
    checks = [
        _check(locked.rows[name], target, own, digests[own]) for name, own in pairing.both.items()
    ]
    digests_locked = {name: row.sha256 for name, row in locked.rows.items()}
    return checks + unpaired(pairing, digests_locked, digests, target.path, "the lock")


def _both_of(tied: dict[str, str]) -> Iterable[str]:
    return (*tied, *tied.values())


def _whole(lock: Lock) -> LockedTensors:
    known = architectures().get(lock.architecture)
    rows = lock.tensors.items()
    names = NamedTensors(
        {name: row.key for name, row in rows},
        frozenset(name for name, row in rows if row.buffer),
        {name: row.extra for name, row in rows if row.extra},
        known.ties if known else {},
        lock.architecture,
    )
    return LockedTensors(lock.tensors, names, "")


def _narrowed(lock: Lock, root: str, target: Checkpoint) -> LockedTensors | None:
    """Return the locked tensors under the root, recognised again; None if there are none.

    Names that are not in TARGET's container `root` are omitted: `model.optimizer` can be a key
    next to `model`.
    """
    beside = {*everything(target)} - {*under(target, root)}
    inside = {
        relative(name, root): row
        for name, row in lock.tensors.items()
        if is_under(name, root) and name not in beside
    }
    if not inside:
        return None
    storage = Storage(MemoryBytes("", b""), 0, 0, "")
    named_tensors = named(
        Tensor(name, BY_NAME[row.dtype], row.shape, c_strides(row.shape), 0, storage)
        for name, row in inside.items()
        if not row.kind
    )
    keys = {name: named_tensors.keys.get(name, name) for name in inside}
    if len(set(keys.values())) < len(keys):
        keys = {name: name for name in inside}
    extras = {name: row.extra for name, row in inside.items() if row.extra}
    names = named_tensors.names._replace(keys=keys, extras=extras)
    return LockedTensors(inside, names, root)


def _check(row: LockedTensor, target: CanonicalWeights, own: str, digest: str) -> Check:
    strange = target.odd.get(own)
    name, outcome, detail = ("digest", PASSED, "unchanged")
    if strange and digests.is_unknown(strange):
        detail = f"not compared: {printable(strange.detail)}; skip it with --exclude"
        name, outcome = "not compared", ERROR
    elif digest != row.sha256:
        name, detail = _difference(row, target, own, digest)
        outcome = FAILED
    elif strange and not strange.parts:
        name, outcome = "not compared", NOTE
        detail = f"not compared: {strange.kind}, its values are not in the file"
    return Check(name, outcome, detail, target.path, own)


def _difference(
    row: LockedTensor, target: CanonicalWeights, own: str, digest: str
) -> tuple[str, str]:
    """Return the name of the failing check, and a description of the difference."""
    strange = target.odd.get(own)
    shape = strange.shape if strange else target.tensors[own].shape
    kind = strange.kind if strange else ""
    if kind != row.kind:
        return "dtype", f"{kind or 'dense'}, expected {row.kind or 'dense'} as in the lock"
    if shape != row.shape:
        return "shape", f"shape {dims(shape)}, expected {dims(row.shape)} as in the lock"
    if not strange:
        tensor = target.tensors[own]
        if (tensor.dtype.name, tensor.stored.block) != (row.dtype, 1):
            detail = f"{tensor.stored.name}, expected {row.dtype} as in the lock; casts need the "
            return "dtype", f"{detail}source: run verify SOURCE TARGET, or lock this file"
    return "digest", f"sha256 {digest}, expected {row.sha256} as in the lock"


def lock_hint(lock: Lock, path: str, checks: Iterable[Check], scope: Scope) -> list[Check]:
    """Return a note on `--root` if all of the lock was compared and it has a well-known root."""
    missing = any(c.outcome == FAILED and c.name in ("lost", "added", "renamed") for c in checks)
    if not missing or scope.root or scope.wish.root is not None:
        return []
    roots = [root for root in WELL_KNOWN_ROOTS if any(is_under(n, root) for n in lock.tensors)]
    if len(roots) != 1:
        return []
    return [root_hint(path, roots[0], sum(is_under(name, roots[0]) for name in lock.tensors))]

"""Verify a converted file by its provenance metadata, and the metadata by its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.checks import FAILED, NOTE, PASSED, Check
from cgpt_convert.core.threads import Advance, untold
from cgpt_convert.formats.raw import writer
from cgpt_convert.formats.raw.reader import FileRecord
from cgpt_convert.verification.canonical_names import named
from cgpt_convert.verification.digests import digested, file_digests, hashed
from cgpt_convert.verification.provenance import MODEL, SOURCE, ProvenanceRecord
from cgpt_convert.verification.scope import ComparedFiles


def against_claim(
    checkpoint: Checkpoint, claim: ProvenanceRecord, jobs: int = 0, advance: Advance = untold
) -> list[Check]:
    """Return a check for each tensor in the file or its metadata; `detail` lists the transforms."""
    digests = hashed(checkpoint.values(), jobs, advance)
    return list(_checks(checkpoint, claim, digests))


def _checks(
    checkpoint: Checkpoint, claim: ProvenanceRecord, digests: Mapping[tuple[object, ...], str]
) -> Iterator[Check]:
    path = checkpoint.path
    for name, row in claim.tensors.items():
        tensor = checkpoint.get(name)
        if tensor is None:
            yield Check("lost", FAILED, "missing; the provenance metadata lists it", path, name)
            continue
        digest = digests[tensor.content]
        if digest != row.sha256:
            detail = f"sha256 {digest}, expected {row.sha256} as in the provenance metadata"
            yield Check("digest", FAILED, detail, path, name)
        else:
            detail = ", ".join(row.steps) or f"tied to {row.origin}"
            yield Check("digest", PASSED, detail, path, name)
    for name in (*checkpoint, *checkpoint.exotic):
        if name not in claim.tensors:
            yield Check("added", FAILED, "not in the provenance metadata", path, name)


def against_mapping(
    checkpoint: Checkpoint, jobs: int = 0, advance: Advance = untold
) -> list[Check]:
    """Return a check for each tensor of a folder whose `mapping.json` records SHA-256 digests.

    The result is empty for other checkpoints. Whole files are compared, including unused bytes.
    """
    if checkpoint.format != writer.NAME:
        return []
    rows = writer.recorded(checkpoint.path)
    if not any(row.sha256 for row in rows):
        return []
    digests = file_digests([row.source for row in rows], jobs, advance)
    return [_recorded(row, digests[row.source.name], checkpoint.path) for row in rows]


def _recorded(row: FileRecord, digest: str, path: str) -> Check:
    name = row.tensor
    if row.sha256 is None:
        detail = f"file {row.file}: {writer.MAPPING} has no sha256 for it"
        return Check("digest", FAILED, detail, path, name)
    if row.sha256 != digest:
        detail = f"file {row.file}: sha256 {digest}, expected {row.sha256} as in {writer.MAPPING}"
        return Check("digest", FAILED, detail, path, name)
    return Check("digest", PASSED, "unchanged", path, name)


def source_of(
    claim: ProvenanceRecord,
    sides: ComparedFiles,
    file: str,
    jobs: int = 0,
    advance: Advance = untold,
) -> list[Check]:
    """Return whether the compared weights are the source in the provenance metadata of `file`.

    Its digests cover all weights that were written, so they cannot be compared with those of a
    part.
    """
    if not (claim.source or claim.model):
        return []
    weights = sides.one
    mentioned = {*claim.tensors, *(row.origin for row in claim.tensors.values())}
    inside = {*sides.pairing.names()}
    written = [
        tensor.renamed(weights.old_name(name))
        for name, tensor in weights.tensors.items()
        if name in inside and (name not in weights.extras or weights.old_name(name) in mentioned)
    ]
    digests = digested(named(written, weights.path), jobs, advance)
    part = bool(sides.scope.wish.match or sides.scope.wish.exclude)
    checks = []
    for key, said, is_so in (
        (SOURCE, claim.source, digests.whole),
        (MODEL, claim.model, digests.model),
    ):
        if said and is_so:
            detail = f"{key} is sha256:{said}"
            outcome = PASSED
            if said != is_so and part:
                detail += ", not compared: it covers more tensors than were compared"
                outcome = NOTE
            elif said != is_so:
                detail += f", but {weights.path} has sha256:{is_so}"
                outcome = FAILED
            checks.append(Check("claim", outcome, detail, file))
    return checks


def declared(checks: list[Check], claim: ProvenanceRecord) -> list[Check]:
    """Return the checks, failed where a transform differs from the file's provenance metadata."""

    def compared(check: Check) -> Check:
        row = claim.tensors.get(check.tensor)
        if row is None or check.name != "bytes" or check.outcome != PASSED or not row.steps:
            return check
        done = check.detail.partition(", max |error|")[0]
        if done == ", ".join(row.steps):
            return check
        detail = f"{done}, expected {', '.join(row.steps)} as in the provenance metadata"
        return check._replace(name="transform", outcome=FAILED, detail=detail)

    return [compared(check) for check in checks]

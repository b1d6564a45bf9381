"""`cgpt-convert digest`."""

from __future__ import annotations

from typing import Any

import click

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.cli import options
from cgpt_convert.cli.notes import note, tell_beside, tell_code
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import counted, wrapped
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.core.text import printable
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.targets.selection import TensorSelection
from cgpt_convert.verification.canonical_names import CanonicalWeights, converted_part, weights
from cgpt_convert.verification.digests import ALGORITHM, TensorDigests, described, digested, of_part
from cgpt_convert.verification.scope import part_scope


@click.command("digest")
@options.source
@click.option("--tensors", is_flag=True, help="Show the digest of each tensor as well.")
@options.scope
@options.mapping
@options.jobs
@options.as_json
def command(
    source: str,
    tensors: bool,
    wish: TensorSelection,
    mapping: str | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Print one digest for all tensors of SOURCE, independent of the file format.

    If the weights are under a well-known key such as state_dict, the next line is the digest of
    that part, which convert writes. For a known architecture, the last line is the digest of the
    model, in which tensor names, computed buffers and weight tying make no difference.
    """
    checkpoint = open_checkpoint(source, mapping)
    tell_code(checkpoint)
    tell_beside(checkpoint, source, "included")
    chosen = weights(checkpoint, wish)
    with progress("hashing", sum(t.nbytes for t in chosen.tensors.values())) as advance:
        digests = digested(chosen, jobs, advance)
    part = _part(checkpoint, chosen, wish)
    part_found = of_part(part, digests) if part is not chosen else digests
    if as_json:
        scope = part_scope(chosen, wish).as_json()
        options.print_json(_result(chosen, digests, part, part_found) | {"scope": scope})
        return
    click.echo(ALGORITHM + digests.whole)
    for check in part_scope(chosen, wish).checks(verb="taken"):
        note(wrapped(f"note: {check.detail}", 4, err=True))
    if part is not chosen:
        of = f"{len(part.keys):,} of {counted(len(chosen.keys), 'tensor')}"
        where = f"under {printable(part.root)!r}" if part.root else "that state_dict() contains"
        click.echo(f"{ALGORITHM}{part_found.whole}  {of}, {where}")
    if part_found.model:
        click.echo(f"{ALGORITHM}{part_found.model}  model {part.architecture}")
    elif part.architecture:
        count = len(part.misfits)
        note(f"no model digest: {count} differences from {part.architecture}")
    for name, digest in digests.tensors.items() if tensors else ():
        click.echo(f"{digest}  {printable(name)}")


def _part(
    checkpoint: Checkpoint, chosen: CanonicalWeights, wish: TensorSelection
) -> CanonicalWeights:
    """Return the weights that `convert` writes, if they are a part of `chosen`, else `chosen`."""
    try:
        return converted_part(checkpoint, chosen, wish)
    except BadRequest as error:  # several roots
        note(f"note: {error.message}; name one with --root")
        return chosen


def _result(
    chosen: CanonicalWeights,
    digests: TensorDigests,
    part: CanonicalWeights,
    part_found: TensorDigests,
) -> dict[str, Any]:
    """Return the result for `--json`; docs/reference/json.md lists the keys."""
    under = {
        "root": part.root or None,
        "digest": ALGORITHM + part_found.whole,
        "tensors": len(part.keys),
        "of": len(chosen.keys),
    }
    return {
        "source": chosen.path,
        "digest": ALGORITHM + digests.whole,
        "weights": under if part is not chosen else None,
        "model": ALGORITHM + part_found.model if part_found.model else None,
        "architecture": part.architecture or None,
        "tensors": [
            {"name": name, "dtype": dtype, "shape": list(shape), "sha256": digests.tensors[name]}
            for name in chosen.keys
            for dtype, shape in [described(chosen, name)]
        ],
    }

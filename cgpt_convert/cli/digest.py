"""`cgpt-convert digest`."""

from __future__ import annotations

import click

from cgpt_convert.api.digesting import digest
from cgpt_convert.cli import options
from cgpt_convert.cli.notes import note, tell_beside, tell_code
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import wrapped
from cgpt_convert.core.text import counted, printable, quoted
from cgpt_convert.formats.open import open_checkpoint


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
    match: tuple[str, ...],
    exclude: tuple[str, ...],
    root: str | None,
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
    digests = digest(
        checkpoint, root=root, match=match, exclude=exclude, jobs=jobs, progress=progress
    )
    if digests.ambiguity:
        note(f"note: {digests.ambiguity}; select one with --root")
    if as_json:
        options.print_json(digests.to_dict())
        return
    click.echo(digests.digest)
    for check in digests.scope.checks(verb="included"):
        note(wrapped(f"note: {check.detail}", 4, err=True))
    part = digests.part
    if part is not None:
        of = f"{part.tensors:,} of {counted(len(digests.tensors), 'tensor')}"
        where = f"under {quoted(part.root)}" if part.root else "that state_dict() contains"
        click.echo(f"{part.digest}  {of}, {where}")
    if digests.model:
        click.echo(f"{digests.model}  model {digests.architecture}")
    elif digests.architecture:
        differences = counted(len(digests.misfits), "difference")
        note(f"note: no model digest: the tensors have {differences} from {digests.architecture}")
    for name, tensor in digests.tensors.items() if tensors else ():
        click.echo(f"{tensor.sha256}  {printable(name)}")

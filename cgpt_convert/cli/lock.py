"""`cgpt-convert lock`."""

from __future__ import annotations

import click

from cgpt_convert.api.locking import lock
from cgpt_convert.cli import options
from cgpt_convert.cli.notes import tell_code
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import wrapped
from cgpt_convert.core.text import counted, printable
from cgpt_convert.formats.open import open_checkpoint, other_weights, weights_below


@click.command("lock")
@options.source
@click.option("-o", "--output", required=True, type=options.OutputPath(), help="File to write.")
@click.option("--in-toto", is_flag=True, help="Write an in-toto statement that contains the lock.")
@options.scope
@options.mapping
@options.jobs
@options.overwrite
@options.as_json
def command(
    source: str,
    output: str,
    in_toto: bool,
    match: tuple[str, ...],
    exclude: tuple[str, ...],
    root: str | None,
    mapping: str | None,
    jobs: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a lock file with a hash for every tensor of SOURCE, for `verify --lock`.

    --root, --match and --exclude select the tensors to record. The file has one line per tensor,
    sorted by name, so that a review shows what changed.
    """
    checkpoint = open_checkpoint(source, mapping)
    tell_code(checkpoint, level="warning")
    for name in (*other_weights(source, checkpoint), *weights_below(source)):
        message = f"not locked: {printable(name)} is another weight file in the folder"
        click.echo(f"warning: {message}", err=True)
    made = lock(
        checkpoint,
        output,
        root=root,
        match=match,
        exclude=exclude,
        in_toto=in_toto,
        overwrite=overwrite,
        jobs=jobs,
        progress=progress,
    )
    if as_json:
        options.print_json(made.to_dict())
        return
    click.echo(wrapped(f"wrote {printable(made.path)}: {counted(len(made.tensors), 'tensor')}", 4))
    for check in made.scope.checks(verb="locked"):
        click.echo(wrapped(check.detail, 4))
    click.echo(made.digest)

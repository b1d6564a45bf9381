"""`cgpt-convert lock`."""

from __future__ import annotations

import click

from cgpt_convert.cli import options
from cgpt_convert.cli.notes import tell_code
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import counted, wrapped
from cgpt_convert.core.text import printable
from cgpt_convert.formats.open import open_checkpoint, other_weights, weights_below
from cgpt_convert.targets.selection import TensorSelection
from cgpt_convert.verification import lock_file
from cgpt_convert.verification.canonical_names import weights
from cgpt_convert.verification.digests import ALGORITHM, digested
from cgpt_convert.verification.scope import part_scope
from cgpt_convert.writing.output_checks import check_apart, inputs_of
from cgpt_convert.writing.writer import WriteOptions


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
    wish: TensorSelection,
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
    check_apart((), inputs_of(checkpoint), [output], folder=False)
    tell_code(checkpoint, level="warning")
    for name in (*other_weights(source, checkpoint), *weights_below(source)):
        click.echo(f"warning: not locked: {printable(name)}, beside it in the folder", err=True)
    chosen = weights(checkpoint, wish)
    with progress("hashing", sum(t.nbytes for t in chosen.tensors.values())) as advance:
        digests = digested(chosen, jobs, advance)
    scope = wish._replace(root=chosen.root or None)
    made = lock_file.lock(checkpoint, chosen, digests, scope, jobs)
    lock_file.write(made, output, WriteOptions(overwrite, inputs_of(checkpoint)), in_toto=in_toto)
    if as_json:
        model = ALGORITHM + made.model if made.model else None
        result = {"source": source, "output": output, "digest": ALGORITHM + made.digest}
        summary = {"model": model, "tensors": len(made.tensors)}
        options.print_json({**result, **summary, "scope": part_scope(chosen, wish).as_json()})
        return
    click.echo(wrapped(f"{printable(output)}: {counted(len(made.tensors), 'tensor')}", 4))
    for check in part_scope(chosen, wish).checks(verb="locked"):
        click.echo(wrapped(check.detail, 4))
    click.echo(ALGORITHM + made.digest)

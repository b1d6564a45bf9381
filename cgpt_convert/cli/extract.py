"""`cgpt-convert extract`."""

from __future__ import annotations

import sys

import click

from cgpt_convert.checkpoint import Checkpoint, MissingTensor
from cgpt_convert.cli import options, salvage_option
from cgpt_convert.cli.notes import tell_code
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import size, wrapped
from cgpt_convert.core.errors import BadRequest, Malformed, Unsupported
from cgpt_convert.core.text import printable, quoted
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.formats.raw import writer
from cgpt_convert.plan import FilePlan, Request
from cgpt_convert.targets.hf_view import undone
from cgpt_convert.targets.selection import (
    EVERYTHING,
    TensorSelection,
    check_dense,
    everything,
    no_match,
    select,
    wanted,
)
from cgpt_convert.writing.destination import write_folder
from cgpt_convert.writing.output_checks import inputs_of
from cgpt_convert.writing.writer import WriteOptions, write_blocks


@click.command("extract")
@options.source
@click.option(
    "-o", "--output", type=options.OutputPath(), help="Folder to write, such as parameters/."
)
@click.option(
    "--by",
    type=click.Choice(["storage", "name"]),
    default="storage",
    show_default=True,
    help="Write one file per storage (bytes as in the archive) or one per tensor (row-major).",
)
@options.match
@options.exclude
@click.option(
    "--stdout",
    "to_stdout",
    metavar="NAME",
    help="Write the bytes of one tensor, row-major, to standard output instead.",
)
@click.option(
    "--properties",
    is_flag=True,
    help="Write OUTPUT/parameters/ and OUTPUT/model.properties, for the raw-parameters program.",
)
@salvage_option.option
@options.mapping
@options.jobs
@options.overwrite
@options.as_json
def command(
    source: str,
    output: str | None,
    by: str,
    match: tuple[str, ...],
    exclude: tuple[str, ...],
    to_stdout: str | None,
    properties: bool,
    salvage: bool,
    mapping: str | None,
    jobs: int,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Write the raw tensors of SOURCE to a folder, with mapping.json.

    The mapping records the file, dtype, shape, strides, start, byte order and SHA-256 of each
    tensor. All other commands can read the folder.
    """
    if (output is None) == (to_stdout is None):
        raise click.UsageError("pass either --output or --stdout")
    if to_stdout is not None and (
        properties or as_json or match or exclude or salvage or by == "name"
    ):
        raise click.UsageError(
            "--stdout cannot be combined with --match, --exclude, --by name, --properties, "
            "--salvage or --json"
        )
    checkpoint = open_checkpoint(source, mapping, salvage=salvage)
    if salvage:
        from cgpt_convert.formats.stored_checksums import intact

        checkpoint = intact(checkpoint, _names(checkpoint, match, exclude), progress)
    tell_code(checkpoint)
    if output is None:
        _to_stdout(checkpoint, str(to_stdout))
        return 0
    lines: tuple[str, ...] = ()
    lost: dict[str, MissingTensor] = {}
    if properties:
        if by == "name" or match or exclude:
            raise click.UsageError(
                "--properties cannot be combined with --match, --exclude or --by name"
            )
        plans, lines = _with_properties(checkpoint)
    else:
        with progress("planning"):
            plans, lost = _plans(checkpoint, by, match, exclude)
    nbytes = sum(plan.nbytes for plan in plans)
    with progress("writing", nbytes) as advance:
        settings = WriteOptions(overwrite, inputs_of(checkpoint), advance, jobs)
        written = write_folder(plans, output, settings)
    result = {
        "output": output,
        "files": len(written) - (2 if properties else 1),
        "nbytes": nbytes,
        "lost": [{"name": name, **missing._asdict()} for name, missing in lost.items()],
    }
    if as_json:
        options.print_json(result)
    else:
        what = "storages" if by == "storage" else "tensors"
        also = ", and model.properties" if properties else ""
        click.echo(
            wrapped(
                f"wrote {printable(output)}: {result['files']:,} {what}, {size(nbytes)}, and "
                f"mapping.json{also}",
                4,
            )
        )
        salvage_option.show(lost)
        for line in lines:
            click.echo(wrapped(f"  {line}", 4))
    return 1 if lost else 0


def _with_properties(checkpoint: Checkpoint) -> tuple[list[FilePlan], tuple[str, ...]]:
    from cgpt_convert.targets.java_program.properties import plan

    check_dense(checkpoint, [name for name, each in checkpoint.exotic.items() if each.error])
    exported = plan(checkpoint)
    return exported.model_folder(), exported.lines


def _plans(
    checkpoint: Checkpoint, by: str, match: tuple[str, ...], exclude: tuple[str, ...]
) -> tuple[list[FilePlan], dict[str, MissingTensor]]:
    """Return the files to write, and the selected tensors that are not intact."""
    if by == "name":
        chosen = select(undone(checkpoint), TensorSelection(EVERYTHING, match, exclude))
        request = Request("parameters", tuple(chosen.tensors), chosen.aliases)
        return writer.plan(request), chosen.lost
    if not (checkpoint or checkpoint.exotic or checkpoint.lost):
        raise Unsupported("the file contains no tensors", where=checkpoint.path)
    tensors = [tensor for name, tensor in checkpoint.items() if wanted(name, match, exclude)]
    exotic = [each for name, each in checkpoint.exotic.items() if wanted(name, match, exclude)]
    lost = {name: why for name, why in checkpoint.lost.items() if wanted(name, match, exclude)}
    if not tensors and not exotic:
        if lost:
            message = f"none of the {len(lost):,} selected tensors is intact"
            raise Malformed(message, where=checkpoint.path)
        raise no_match(checkpoint.path, everything(checkpoint))
    broken = [each.name for each in exotic if each.error]
    check_dense(checkpoint, [*checkpoint.unsaved.intersection(t.name for t in tensors), *broken])
    return writer.plan_storages(checkpoint, tensors, exotic), lost


def _names(checkpoint: Checkpoint, match: tuple[str, ...], exclude: tuple[str, ...]) -> list[str]:
    names = (*checkpoint, *checkpoint.exotic)
    return [name for name in names if wanted(name, match, exclude)]


def _to_stdout(checkpoint: Checkpoint, name: str) -> None:
    if name not in checkpoint:
        raise BadRequest(
            f"there is no dense tensor {quoted(name)}",
            where=checkpoint.path,
            hint="run inspect to list the names",
        )
    if name in checkpoint.unsaved | checkpoint.collisions:
        why = "has no values" if name in checkpoint.unsaved else "has more than one value"
        raise BadRequest(f"tensor {quoted(name)} {why}", where=checkpoint.path)
    if sys.stdout.isatty():
        raise BadRequest(
            "raw bytes are not written to a terminal",
            hint="redirect standard output to a file or a pipe",
        )
    write_blocks(checkpoint[name], sys.stdout.fileno())

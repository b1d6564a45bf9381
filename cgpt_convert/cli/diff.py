"""`cgpt-convert diff`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click

from cgpt_convert.api.diffing import diff
from cgpt_convert.cli import options, style
from cgpt_convert.cli.notes import tell_beside, tell_code
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import table, wrapped
from cgpt_convert.core.checks import NOTE, PASSED
from cgpt_convert.core.text import counted, printable
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.tensors.shapes import dims
from cgpt_convert.verification.tensor_differences import (
    CHANGED,
    EQUAL,
    LEFT_OUT,
    RENAMED,
    TensorDifference,
)

_COLUMNS = ("tensor", "change", "elements", "differing", "max |diff|", "cosine")
_OPTIONAL = ("cosine", "elements", "differing")  # not shown on a narrow terminal
_SHOWN = {LEFT_OUT: "skipped"}  # in place of the value in JSON
_LEVELS = {EQUAL: PASSED, RENAMED: NOTE, LEFT_OUT: NOTE}


@click.command("diff")
@click.argument("before", type=options.PATH)
@click.argument("after", type=options.PATH)
@options.common
@options.scope
@options.jobs
@options.as_json
def command(
    before: str,
    after: str,
    match: tuple[str, ...],
    exclude: tuple[str, ...],
    root: str | None,
    jobs: int,
    as_json: bool,
) -> int:
    """Show which tensors of BEFORE and AFTER differ, and by how much. Exit code 1 if any does.

    --root, --match and --exclude select the tensors to compare; the others are listed. For known
    architectures, differences in tensor names, computed buffers and weight tying are ignored.
    """
    opened = open_checkpoint(before), open_checkpoint(after)
    tell_code(*opened)
    for checkpoint, path in zip(opened, (before, after), strict=True):
        tell_beside(checkpoint, path)
    difference = diff(
        *opened, root=root, match=match, exclude=exclude, jobs=jobs, progress=progress
    )
    if as_json:
        options.print_json(difference.to_dict())
    else:
        _print(difference.rows)
        for check in difference.scope.checks():
            click.echo(wrapped(f"{printable(check.file)}: {check.detail}", 4))
    if difference.differs:
        return 1
    return 0 if difference.equal else 3


def _print(rows: Sequence[TensorDifference]) -> None:
    shown = [row for row in rows if row.state not in (EQUAL, LEFT_OUT)]
    if shown:
        cells = [_cells(row) for row in shown]
        for line in table(_COLUMNS, cells, right=_COLUMNS[2:], optional=_OPTIONAL):
            click.echo(line)
    counts = Counter(row.state for row in rows)
    summary = ", ".join(
        style.verdict(f"{count:,} {_SHOWN.get(state, state)}", _LEVELS.get(state, style.WARNING))
        for state, count in counts.items()
    )
    click.echo(wrapped(f"{counted(len(rows), 'tensor')}: {summary}", 4))


def _cells(row: TensorDifference) -> list[str]:
    name = printable(row.before or row.after)
    if row.before and row.after and row.before != row.after:
        name += f" => {printable(row.after)}"
    change = row.state
    if row.state == CHANGED and len(set(row.shapes)) > 1:
        change = " => ".join(dims(shape) for shape in row.shapes)
    elif row.state == CHANGED and len(set(row.dtypes)) > 1:
        change = " => ".join(row.dtypes)
    numbers = [f"{n:,}" if n is not None else "" for n in (row.numel, row.differing)]
    if row.state != CHANGED:
        return [name, change, "", "", "", ""]
    most = f"{row.most:.3g}" if row.most is not None else ""
    cosine = f"{row.cosine:.9f}" if row.cosine is not None else ""
    return [name, change, *numbers, most, cosine]

"""`cgpt-convert inspect`."""

from __future__ import annotations

from typing import Any

import click

from cgpt_convert.api.inspecting import inspect
from cgpt_convert.cli import options, report
from cgpt_convert.cli.progress import progress
from cgpt_convert.core.errors import BadRequest, CheckFailed, Malformed
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.inspection import checks_of


@click.command("inspect")
@options.source
@options.match
@click.option(
    "--sort",
    type=click.Choice(["name", "size", "file", "nan"]),
    default="file",
    show_default=True,
    help="Order of the tensor table; nan, with --stats, puts NaN and Inf first.",
)
@click.option(
    "--tree", is_flag=True, help="Group the tensors by module, with subtotals and shares."
)
@click.option(
    "--stats", is_flag=True, help="Read the tensors; show distribution, range, mean, NaN and Inf."
)
@click.option("--check", is_flag=True, help="Verify all checksums; exit 1 if one is wrong.")
@options.report_format
@options.mapping
@options.as_json
@options.reported
def command(
    source: str,
    match: tuple[str, ...],
    sort: str,
    tree: bool,
    stats: bool,
    check: bool,
    form: str,
    mapping: str | None,
    as_json: bool,
) -> int:
    """Show what is in SOURCE, and whether it is safe.

    Nothing in the file is executed. Tensors are only read with --stats or --check.
    """
    if sort == "nan" and not stats:
        raise BadRequest("--sort nan requires --stats", hint="add --stats")
    if form != "text" and not check:
        raise BadRequest("--format requires --check", hint="add --check")
    checkpoint = open_checkpoint(source, mapping)
    summary = inspect(checkpoint, match=match, stats=stats, check=check, progress=progress)
    summary["tensors"] = _sorted(summary["tensors"], sort)
    if form != "text":
        return options.print_checks(checks_of(summary), form)
    if as_json:
        options.print_json(summary)
    else:
        report.show(summary, tree=tree)
    if check and not summary["check"]["ok"]:
        return CheckFailed.exit_code
    malformed = any(isinstance(each.error, Malformed) for each in checkpoint.exotic.values())
    return Malformed.exit_code if malformed else 0


def _sorted(rows: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    if sort == "name":
        return sorted(rows, key=lambda row: row["name"])
    if sort == "nan":
        return sorted(rows, key=_not_finite, reverse=True)
    if sort == "size":
        return sorted(rows, key=lambda row: -row["nbytes"])
    return rows


def _not_finite(row: dict[str, Any]) -> int:
    return (row["stats"]["nan"] or 0) + (row["stats"]["inf"] or 0)

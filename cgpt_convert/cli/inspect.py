"""`cgpt-convert inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.cli import options, report
from cgpt_convert.cli.progress import progress
from cgpt_convert.core.errors import BadRequest, CheckFailed, Malformed
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.inspection import checks_of, summarise
from cgpt_convert.sources.paths import is_url
from cgpt_convert.tensors.tensor import Tensor


@click.command("inspect")
@options.source
@options.match
@click.option(
    "--sort",
    type=click.Choice(["name", "size", "file"]),
    default="file",
    show_default=True,
    help="The order of the tensor table.",
)
@click.option("--tree", is_flag=True, help="Fold the tensors by module, with subtotals.")
@click.option(
    "--stats", is_flag=True, help="Read the tensors: min, max, mean, std, zeros, NaN, Inf."
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

    Nothing in the file is run, and without --stats or --check no tensor is read.
    """
    if form != "text" and not check:
        raise BadRequest("--format is for reporting what --check finds", hint="add --check")
    checkpoint = open_checkpoint(source, mapping)
    summary = summarise(checkpoint)
    rows = _sorted(_matching(checkpoint, summary["tensors"], match), sort)
    if stats:
        _add_stats(checkpoint, rows)
    if check:
        summary["check"] = _check(checkpoint)
    if form != "text":
        return options.print_checks(checks_of(summary), form)
    if as_json:
        summary["transfer"] = _transfer(checkpoint)
        options.print_json(summary | {"tensors": rows})
    else:
        report.show(summary, rows, tree=tree)
    if check and not summary["check"]["ok"]:
        return CheckFailed.exit_code
    malformed = any(isinstance(each.error, Malformed) for each in checkpoint.exotic.values())
    return Malformed.exit_code if malformed else 0


def _transfer(checkpoint: Checkpoint) -> dict[str, int] | None:
    """What was asked for so far over a network; None for local files."""
    if not is_url(checkpoint.path):
        return None
    from cgpt_convert.sources.remote.settings import traffic

    return {"requests": traffic.requests, "nbytes": traffic.nbytes, "total": traffic.total}


def _matching(
    checkpoint: Checkpoint, rows: list[dict[str, Any]], match: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of the tensors that a glob fits; BadRequest, as of `convert`, if it fits none."""
    if not match:
        return rows
    from cgpt_convert.targets.selection import no_match, wanted

    every = (*checkpoint, *checkpoint.exotic)
    if not any(wanted(name, match) for name in every):
        raise no_match(checkpoint.path, every)
    return [row for row in rows if wanted(row["name"], match)]


def _sorted(rows: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    if sort == "name":
        return sorted(rows, key=lambda row: row["name"])
    if sort == "size":
        return sorted(rows, key=lambda row: -row["nbytes"])
    return rows


def _add_stats(checkpoint: Checkpoint, rows: list[dict[str, Any]]) -> None:
    from cgpt_convert.tensors.stats import statistics

    pairs = [(checkpoint[row["name"]], row) for row in rows]
    pairs.sort(key=lambda pair: _place(pair[0]))
    with progress("statistics", sum(row["nbytes"] for row in rows)) as advance:
        for tensor, row in pairs:
            row["stats"] = statistics(tensor)
            advance(row["nbytes"])


def _place(tensor: Tensor) -> tuple[str, int, int]:
    """Where it begins. A packed storage, a source of its own, can only be read forward."""
    storage = tensor.storage
    return storage.source.name, storage.offset, tensor.stored.size(tensor.start)


def _check(checkpoint: Checkpoint) -> dict[str, Any]:
    """The result of comparing every storage with its recorded checksum."""
    from cgpt_convert.tensors.checksums import check_storages

    recorded = [s for s in checkpoint.storages if s.crc32 is not None]
    with progress("checksums", sum(s.nbytes for s in recorded)) as advance:
        damaged = {id(storage): storage.key for storage in check_storages(recorded, advance)}
    touched = [name for name, tensor in checkpoint.items() if id(tensor.storage) in damaged]
    return {
        "ok": not damaged,
        "storages": len(checkpoint.storages),
        "recorded": len(recorded),
        "damaged": list(damaged.values()),
        "tensors": touched,
    }

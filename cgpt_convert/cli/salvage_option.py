"""The option `--salvage`, which recovers the intact tensors of a damaged file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from cgpt_convert.checkpoint import Checkpoint, MissingTensor
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import wrapped
from cgpt_convert.core.text import printable
from cgpt_convert.formats.open import open_checkpoint

option = click.option(
    "--salvage",
    is_flag=True,
    help="Recover the intact tensors of a damaged file, list the rest, exit 1.",
)


def opened(
    source: str,
    mapping: str | None,
    names: Callable[[Checkpoint], Iterable[str]],
    *,
    salvage: bool,
) -> Checkpoint:
    """Open `source`; with `salvage`, keep only intact tensors.

    The storages of the tensors `names` are then read and compared with their recorded checksums.
    """
    checkpoint = open_checkpoint(source, mapping, salvage=salvage)
    if not salvage or all(storage.crc32 is None for storage in checkpoint.storages):
        return checkpoint
    from cgpt_convert.formats.stored_checksums import lose_damaged, parts_of

    chosen = list(names(checkpoint))
    storages = {id(p.storage): p.storage for name in chosen for p in parts_of(checkpoint, name)}
    nbytes = sum(storage.nbytes for storage in storages.values() if storage.crc32 is not None)
    with progress("checksums", nbytes) as advance:
        lose_damaged(checkpoint, chosen, advance)
    return checkpoint


def rows(lost: Mapping[str, MissingTensor]) -> list[dict[str, Any]]:
    """Return the lost tensors for `--json`."""
    return [{"name": name, "nbytes": each.nbytes, "why": each.why} for name, each in lost.items()]


def show(lost: Iterable[dict[str, Any]]) -> None:
    """Print a line for each lost tensor."""
    for row in lost:
        nbytes = "" if row["nbytes"] is None else f"{row['nbytes']:,} bytes, "
        click.echo(wrapped(f"  lost: {printable(row['name'])}: {nbytes}{printable(row['why'])}", 4))

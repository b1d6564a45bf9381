"""The option `--salvage`, which recovers the intact tensors of a damaged file."""

from __future__ import annotations

from collections.abc import Mapping

import click

from cgpt_convert.checkpoint import MissingTensor
from cgpt_convert.cli.table import wrapped
from cgpt_convert.core.text import printable

option = click.option(
    "--salvage",
    is_flag=True,
    help="Recover the intact tensors of a damaged file, list the rest, exit 1.",
)


def show(lost: Mapping[str, MissingTensor]) -> None:
    """Print a line for each lost tensor."""
    for name, missing in lost.items():
        nbytes = "" if missing.nbytes is None else f"{missing.nbytes:,} bytes, "
        click.echo(wrapped(f"  lost: {printable(name)}: {nbytes}{printable(missing.why)}", 4))

"""Options and arguments that several commands take, each said once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.errors import BadRequest

F = TypeVar("F", bound=Callable[..., Any])

source = click.argument("source", type=click.Path())
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
match = click.option(
    "--match", multiple=True, metavar="GLOB", help="Only tensors of such a name (repeatable)."
)
exclude = click.option(
    "--exclude", multiple=True, metavar="GLOB", help="No tensors of such a name (repeatable)."
)
root = click.option(
    "--root",
    metavar="KEY",
    help="Where in a nested checkpoint the weights are; '.' takes everything.  "
    "[default: a lone well-known key such as state_dict]",
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace existing output.")
mapping = click.option(
    "--mapping",
    metavar="MODEL",
    help="Read a folder of bare numbered files with the ready mapping of MODEL (see models).",
)


def print_json(value: object) -> None:
    """Print `value` as indented JSON."""
    click.echo(json.dumps(value, indent=2))


def check_apart(checkpoint: Checkpoint, output: str) -> None:
    """Raise BadRequest if writing `output` would replace what `checkpoint` is read from."""
    try:
        status = os.stat(output)
    except OSError:
        return
    for source in checkpoint.sources:
        inside = os.path.commonpath([_real(output), _real(source.name)]) == _real(output)
        if os.path.samestat(os.stat(source.name), status) or inside:
            raise BadRequest("the output is the input", where=output, hint="name another file")


def _real(path: str) -> str:
    return os.path.realpath(path)

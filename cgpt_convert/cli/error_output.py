"""Errors as they are printed: on standard error as text, and on standard output with `--json`.

Usage errors that click finds have the same form as this package's own.
"""

from __future__ import annotations

import json
import re
import sys

import click

from cgpt_convert.cli import style
from cgpt_convert.cli.table import wrapped
from cgpt_convert.core.checks import FAILED
from cgpt_convert.core.errors import BadRequest, CgptError
from cgpt_convert.core.text import printable, suggestion

# click's messages about numbers, in plain words
_NUMBERS = (
    (r" is not a valid integer( range)?", " is not a whole number"),
    (r" is not a valid float( range)?", " is not a number"),
    (r" is not in the range x>=", " is less than "),
    (r" is not in the range x>", " is not greater than "),
)


def print_error(error: CgptError) -> None:
    """Print the error as text, and as JSON if the command line asks for JSON."""
    error.where = error.where.replace("\n", "\\n")
    lines = [printable(line) for line in f"error: {error}".split("\n")]
    lines[0] = lines[0].replace("error", style.verdict("error", FAILED, err=True), 1)
    click.echo("\n".join(wrapped(line, 6, err=True) for line in lines), err=True, color=True)
    print_json_error(error.kind, error.message, error.exit_code, error.where, error.hint)


def print_json_error(
    kind: str, message: str, exit_code: int, where: str = "", hint: str = ""
) -> None:
    """Print the error on standard output, if `--json` is among the options on the command line."""
    words = sys.argv[1:]
    if "--json" in (words[: words.index("--")] if "--" in words else words):
        error = {"kind": kind, "message": message, "where": where, "hint": hint}
        click.echo(json.dumps({"error": {**error, "exit_code": exit_code}}, indent=2))


def from_click(error: click.UsageError) -> BadRequest:
    """Return the usage error as one of this package's, with what to do next."""
    path = error.ctx.command_path if error.ctx else " ".join(["cgpt-convert", *sys.argv[1:2]])
    hint = f"`{path} --help` shows the options"
    if isinstance(error, click.MissingParameter) and error.param and error.ctx:
        name = error.param.human_readable_name
        if isinstance(error.param, click.Option):
            name = "/".join(error.param.opts)
        usage = " ".join(error.ctx.command.collect_usage_pieces(error.ctx))
        message = f"missing {error.param.param_type_name} {name}"
        return BadRequest(message, hint=f"usage: {path} {usage}")
    if isinstance(error, click.BadParameter) and error.param:
        where = error.param.human_readable_name
        if isinstance(error.param, click.Option):
            where = error.param.opts[-1]
        unknown = re.match(r"'(.*?)' is not one of ", error.message, re.DOTALL)
        if unknown and isinstance(error.param.type, click.Choice):
            near = suggestion(unknown[1], map(str, error.param.type.choices))
            hint = f"{near}{hint}"
        return BadRequest(_plain(error.message), where=where, hint=hint)
    if isinstance(error, click.NoSuchOption) and error.ctx:
        params = error.ctx.command.get_params(error.ctx)
        near = suggestion(error.option_name, [name for param in params for name in param.opts])
        return BadRequest(f"no such option {error.option_name}", hint=f"{near}{hint}")
    return BadRequest(_plain(error.message), hint=hint)


def _plain(message: str) -> str:
    """Return click's sentence without its capital and its full stop."""
    for pattern, plain in _NUMBERS:
        message = re.sub(pattern, plain, message)
    head = message[:1].lower() if message[1:2].islower() else message[:1]
    return head + message[1:].removesuffix(".")

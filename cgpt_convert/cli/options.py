"""Options and arguments shared by several commands."""

from __future__ import annotations

import functools
import json
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import click

from cgpt_convert.cli.progress import AUTO, MODES, display, progress
from cgpt_convert.core.checks import ERROR, Check, exit_code
from cgpt_convert.core.errors import BadRequest, CgptError, Malformed
from cgpt_convert.core.threads import show_steps
from cgpt_convert.reports import FORMATS, render
from cgpt_convert.sources.local import read, unreadable
from cgpt_convert.sources.paths import is_url, named, open_source

F = TypeVar("F", bound=Callable[..., Any])


class TokenIds(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """Token IDs such as 464,2068,7586."""

    name = "ids"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """Return the IDs; invalid ones are a usage error."""
        words = str(value).replace(",", " ").split()
        if not words or not all(word.isascii() and word.isdigit() for word in words):
            self.fail(f"{value!r} is not a list of token IDs such as 464,2068", param, ctx)
        return [int(word) for word in words]


# not checked by click, which treats an unreadable file as a usage error
PATH = click.Path(readable=False)


class OutputPath(click.Path):
    """An output path, or a URL with its secrets removed."""

    def __init__(self) -> None:
        super().__init__(readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path or URL. Raises BadRequest for a URL that cannot be written to."""
        path = named(os.fsdecode(super().convert(value, param, ctx)))
        if is_url(path):
            from cgpt_convert.sources.remote.urls import check_writable

            check_writable(path)
        return path


def _setting(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Return a callback that sets one of the process-wide remote settings, if given."""

    def set_it(_context: click.Context, _param: click.Parameter, value: Any) -> None:
        if value is not None:
            from cgpt_convert.sources.remote.remote_settings import settings

            setattr(settings, name, value)

    return set_it


def _quiet(_context: click.Context, _param: click.Parameter, value: bool) -> None:
    display.quiet = value
    show_steps(progress)


def _progress(_context: click.Context, _param: click.Parameter, value: str) -> None:
    display.mode = value


def common(command: F) -> F:
    """Add the options of all commands with input: progress, and for remote files."""
    for option in (
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            expose_value=False,
            callback=_quiet,
            help="Print results, warnings and errors only.",
        ),
        click.option(
            "--progress",
            type=click.Choice(MODES),
            default=AUTO,
            show_default=True,
            expose_value=False,
            callback=_progress,
            help="Progress on standard error: a bar on a terminal, lines for a log, or none.",
        ),
        click.option(
            "--download",
            is_flag=True,
            default=None,
            expose_value=False,
            callback=_setting("download"),
            help="Download remote files completely before reading them.",
        ),
        click.option(
            "--retries",
            type=click.IntRange(min=0),
            metavar="N",
            expose_value=False,
            callback=_setting("retries"),
            help="Number of retries for a failed remote request.  [default: 5]",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            expose_value=False,
            callback=_setting("timeout"),
            help="Give up if the server sends nothing for this long.  [default: 30]",
        ),
    ):
        command = option(command)
    return command


def source(command: F) -> F:
    """Add the argument SOURCE, which may be a URL."""
    return click.argument("source", type=PATH)(common(command))


as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
match = click.option(
    "--match",
    multiple=True,
    metavar="GLOB",
    help="Include only tensors whose names match GLOB (repeatable).",
)
exclude = click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Skip tensors whose names match GLOB (repeatable).",
)
root = click.option(
    "--root",
    metavar="KEY",
    help="Key of the weights, such as state_dict; '.' means all tensors.  [default: detected]",
)
jobs = click.option(
    "--jobs",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Number of threads.  [default: one per CPU core]",
)
report_format = click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="Format of the report.",
)
allow = click.option(
    "--allow",
    multiple=True,
    metavar="MODULE.NAME",
    help="Allow this class, given as module.Name (repeatable).",
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace existing output.")
tokenizer = click.option(
    "--tokenizer",
    metavar="DIR",
    help="Folder of the tokenizer.  [default: in or next to the model]",
)
mapping = click.option(
    "--mapping",
    metavar="MODEL",
    help="Read raw numbered files using MODEL's built-in mapping (see `models`).",
)


whole_root = click.option(
    "--root",
    metavar="KEY",
    help="Take only the tensors under this key of a nested checkpoint.  [default: all tensors]",
)


def selection(command: F) -> F:
    """Add --match, --exclude and --root, which have the names of the library's arguments."""
    return match(exclude(root(command)))


def scope(command: F) -> F:
    """Add the same options, except that no root means all tensors."""
    return match(exclude(whole_root(command)))


class OrderedCommand(click.Command):
    """A command that records the order of its options, for `renames`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and store the name of each option, in the order given."""
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args([*args])
            ctx.meta[_ORDER] = [param.name for param in order]
        return super().parse_args(ctx, args)


_ORDER = f"{__name__}.order"
_RENAMES = {
    "strip_prefix": ("PREFIX", "Remove PREFIX from the names that begin with it (repeatable)."),
    "add_prefix": ("PREFIX", "Put PREFIX before every name (repeatable)."),
    "rename": (
        "RULE",
        "Replace all matches in the names; RULE is REGEX=>REPLACEMENT (repeatable).",
    ),
    "map": ("FILE", "Rename tensors by a JSON object of old to new names (repeatable)."),
}


def renames(command: F) -> F:
    """Add the options that change names.

    The command, an `OrderedCommand`, gets them as pairs of option and value, in the order given.
    """

    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        values = {name: iter(given.pop(name)) for name in _RENAMES}
        order = click.get_current_context().meta[_ORDER]
        pairs = [(n.replace("_", "-"), next(values[n])) for n in order if n in values]
        return command(rename=pairs, **given)

    for name, (metavar, text) in reversed(_RENAMES.items()):
        flag = f"--{name.replace('_', '-')}"
        wrapped = click.option(flag, name, multiple=True, metavar=metavar, help=text)(wrapped)
    return cast("F", wrapped)


def read_text(path: str) -> str:
    """Return the text in a UTF-8 file with its line ends unchanged. Raises an error if empty."""
    path = named(path)
    try:
        if os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode):  # --text <(...)
            with open(path, "rb") as pipe:
                text = pipe.read().decode()
        else:
            file = open_source(path)
            text = read(file, 0, file.nbytes).decode()
    except OSError as error:
        raise unreadable(error, path) from error
    except UnicodeDecodeError as error:
        raise Malformed(
            f"the text is not UTF-8 (byte {error.start:,})",
            where=path,
            hint="pass a text file in UTF-8",
        ) from error
    if not text:
        raise BadRequest("the text file is empty", where=path)
    return text


def print_json(value: object) -> None:
    """Print `value` as indented JSON."""
    click.echo(json.dumps(value, indent=2))


def print_checks(checks: Sequence[Check], form: str) -> int:
    """Print the report for `--format`; return the exit code of the checks."""
    report = render(checks, form)
    if report:
        click.echo(report)
    return exit_code(checks)


def reported(command: F) -> F:
    """Make reports other than `text` include the error if an input cannot be checked."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        try:
            return command(**given)
        except CgptError as error:
            if given["form"] == "text" or error.exit_code != CgptError.exit_code:
                raise
            hint = f" ({error.hint})" if error.hint else ""
            return print_checks(
                [Check("input", ERROR, error.message + hint, error.where)], given["form"]
            )

    return cast("F", wrapped)

"""`cgpt-convert scan`."""

from __future__ import annotations

import functools
import os

import click

from cgpt_convert.api.scan_paths import scan
from cgpt_convert.cli import options, scan_text
from cgpt_convert.cli.progress import progress
from cgpt_convert.core.checks import exit_code
from cgpt_convert.scanning.result import FailOn


class _Unambiguous(click.Command):
    """A command that rejects options that are also file names.

    Shell patterns and hooks append file names to the options, and a repository may contain a file
    called `--allow=os.system`. The intended meaning cannot be known, so neither is used.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raise a usage error for an option before `--` that is also a file in this folder."""
        end = args.index("--") if "--" in args else len(args)
        options = args[:end] if "--" in args[end + 1 :] else args[: end + 1]
        for option in options:
            if option[:1] == "-" != option and os.path.lexists(option):
                message = f"{option!r} is an option and the name of a file in this folder"
                hint = "write -- before the names of files, or ./ before this one"
                raise click.UsageError(f"{message}: {hint}", ctx)
        return super().parse_args(ctx, args)


@click.command("scan", cls=_Unambiguous)
@click.argument("path", nargs=-1, required=True, type=options.PATH)
@options.allow
@click.option("--require-weights", is_flag=True, help="Fail if PATH contains no weight file.")
@click.option(
    "--fail-on",
    type=click.Choice([level.value for level in FailOn]),
    help="Least severe verdict that fails; dangerous and malformed files always fail.  "
    "[default: not-scanned]",
)
@click.option(
    "--policy",
    metavar="FILE",
    type=options.PATH,
    help="Read allowed names, excluded paths and expected verdicts from this TOML file.",
)
@options.report_format
@options.common
@options.jobs
@options.as_json
def command(
    path: tuple[str, ...],
    allow: tuple[str, ...],
    require_weights: bool,
    fail_on: str | None,
    policy: str | None,
    form: str,
    jobs: int,
    as_json: bool,
) -> int:
    """Report what code loading the files at PATH would execute.

    PATH is a file, a folder with everything below it, a pattern or a URL. Nothing is loaded or
    executed. The exit code is 1 if a file is dangerous or foreign, and 3 if one is malformed, not
    scanned or unreadable.
    """
    result = scan(
        *path,
        allow=allow,
        policy=policy,
        fail_on=fail_on,
        require_weights=require_weights,
        jobs=jobs,
        progress=functools.partial(progress, unit=" files"),
    )
    if as_json:
        options.print_json(result.to_dict())
    elif form == "text":
        shown = scan_text.ScanCommand(path, allow, policy, fail_on)
        click.echo(scan_text.report(result.files, result.errors, result.checks, shown))
    else:
        options.print_checks(result.checks, form)
    return exit_code(result.checks)

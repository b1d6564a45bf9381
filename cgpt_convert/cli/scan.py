"""`cgpt-convert scan`."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import click

from cgpt_convert.cli import options, scan_text
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import counted
from cgpt_convert.core.checks import ERROR, FAILED, NOTE, Check, exit_code
from cgpt_convert.core.errors import CgptError
from cgpt_convert.scanning import allowlist, expand_paths
from cgpt_convert.scanning.policy import Policy, load
from cgpt_convert.scanning.raw_folders import RAW
from cgpt_convert.scanning.result import FailOn, FileScan, Verdict
from cgpt_convert.scanning.scan_files import scan_each


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
    help="Mildest verdict that fails; dangerous and malformed files always fail.  "
    "[default: not-scanned]",
)
@click.option(
    "--policy",
    "policy_path",
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
    policy_path: str | None,
    form: str,
    jobs: int,
    as_json: bool,
) -> int:
    """Report what code loading the files at PATH would execute.

    PATH is a file, a folder with everything below it, a pattern or a URL. Nothing is loaded or
    executed. The exit code is 1 if a file is dangerous or foreign, and 3 if one is malformed, not
    scanned or unreadable.
    """
    policy = load(policy_path) if policy_path else Policy()
    level = FailOn(fail_on) if fail_on else policy.fail_on or FailOn.NOT_SCANNED
    rule = allowlist.Allowlist((*allow, *policy.names))
    with progress("listing files"):
        files = list(expand_paths.files(path))
    kept = [file for file in files if not (isinstance(file, str) and policy.excludes(file))]
    scans = []
    with progress(f"scanning {counted(len(kept), 'file')}", len(kept), " files") as done:
        for each in scan_each(kept, rule, jobs):
            scans.append(each)
            done(1)
    scanned = [file for file in scans if isinstance(file, FileScan)]
    unlisted = [error for error in scans if isinstance(error, CgptError)]
    expected = {file.path: policy.expected(file) for file in scanned}
    checks = [
        check for file in scanned for check in policy.checks(file, expected[file.path], level)
    ]
    if len(kept) < len(files):
        count = counted(len(files) - len(kept), "file")
        checks.append(Check("policy", NOTE, f"{count} excluded by the policy"))
    checks += policy.unused()
    checks += [Check("scan", ERROR, error.message, error.where) for error in unlisted]
    skipped = [file for file in scanned if file.verdict is Verdict.NOTHING]
    if skipped:
        checks.append(Check("scan", NOTE, _skipped(skipped)))
    unused = rule.unused(name for file in scanned for name in file.added)
    checks += [
        Check("allow", NOTE, f"--allow {name} matches no name in these files") for name in unused
    ]
    if require_weights and not any(file.weights or file.kind == RAW for file in scanned):
        checks.append(Check("weights", FAILED, f"no weight file in {counted(len(scans), 'file')}"))
    if as_json:
        errors = [{"path": error.where, "message": error.message} for error in unlisted]
        options.print_json(_result(scanned, checks) | {"errors": errors, "unused": unused})
    elif form == "text":
        shown = scan_text.ScanCommand(path, allow, policy_path, fail_on)
        click.echo(scan_text.report(scanned, unlisted, checks, shown))
    else:
        options.print_checks(checks, form)
    return exit_code(checks)


def _skipped(files: list[FileScan]) -> str:
    kinds = Counter(file.kind for file in files).most_common()
    shown = ", ".join(counted(count, kind) for kind, count in kinds)
    verb = "contains" if len(files) == 1 else "contain"
    return f"{counted(len(files), 'file')} {verb} no weights and no pickle ({shown})"


def _result(scanned: list[FileScan], checks: list[Check]) -> dict[str, Any]:
    verdicts = Counter(file.verdict for file in scanned)
    return {
        "ok": exit_code(checks) == 0,
        "verdicts": {verdict.value: verdicts[verdict] for verdict in Verdict},
        "files": [_file(file) for file in scanned],
    }


def _file(file: FileScan) -> dict[str, Any]:
    return {
        "path": file.path,
        "kind": file.kind,
        "verdict": file.verdict.value,
        "pickles": file.pickles,
        "allowed": file.added,
        "sightings": [
            {key: value for key, value in sighting._asdict().items() if key != "option"}
            | {"rule": sighting.rule.id}
            for sighting in file.sightings
        ],
        "problems": [
            {"id": finding.rule.id, "detail": finding.detail} for finding in file.problems
        ],
        "notes": [{"id": finding.rule.id, "detail": finding.detail} for finding in file.notes],
    }

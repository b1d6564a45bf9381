"""`cgpt-convert verify`."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from cgpt_convert.api.verifying import Verified, verify
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.cli import options, style
from cgpt_convert.cli.compute_options import ComputeOptions, computing
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import wrapped
from cgpt_convert.core.checks import ERROR, FAILED, NOTE, PASSED, Check, exit_code
from cgpt_convert.core.text import counted, printable
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.verification.composite_pairs import is_unread

if TYPE_CHECKING:
    from cgpt_convert.cli.logits import LogitsCheck


@click.command("verify", cls=options.OrderedCommand)
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE] TARGET")
@options.common
@click.option("--lock", metavar="FILE", help="Compare TARGET with this file, written by `lock`.")
@click.option("--verbose", "-v", is_flag=True, help="Show every tensor, not only differences.")
@click.option(
    "--logits", is_flag=True, help="Also run both models on the same tokens and compare each layer."
)
@click.option(
    "--tokens",
    type=options.TokenIds(),
    help="Token IDs to compare (with --logits).  [default: 64, spread over the vocabulary]",
)
@click.option(
    "--text", metavar="FILE", help="Text file whose first tokens are used (with --logits)."
)
@click.option(
    "--tokenizer",
    metavar="DIR",
    help="Folder of the tokenizer (with --text).  [default: in or next to the model]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="NMSE",
    help="Largest NMSE to accept (with --logits).  [default: by TARGET's coarsest type]",
)
@computing
@options.scope
@options.renames
@options.mapping
@options.jobs
@options.allow
@options.report_format
@options.as_json
@options.reported
def command(
    paths: tuple[str, ...],
    lock: str | None,
    verbose: bool,
    logits: bool,
    match: tuple[str, ...],
    exclude: tuple[str, ...],
    root: str | None,
    rename: list[tuple[str, str]],
    mapping: str | None,
    jobs: int,
    allow: tuple[str, ...],
    computing: ComputeOptions,
    form: str,
    as_json: bool,
    **how: Any,
) -> int:
    """Compare TARGET with SOURCE, with a lock file, or with its provenance metadata.

    Every tensor of either file is compared bit for bit; casts and quantizations are recomputed from
    SOURCE. --root, --match, --exclude or a root in the provenance metadata select the tensors to
    compare; the others are listed. The check also fails if TARGET's pickle refers to code that
    weight files do not need, or if its folder contains other weight files. The exit code is 1 if
    a check fails.
    """
    if len(paths) > (1 if lock else 2):
        raise click.UsageError("pass SOURCE and TARGET, or TARGET and --lock, or TARGET alone")
    said = {**how, **computing._asdict()}
    chosen = bool(match or exclude or rename or root is not None)
    _check_use(logits, said, pair=len(paths) > 1, chosen=chosen)
    compare = functools.partial(
        verify,
        root=root,
        match=match,
        exclude=exclude,
        rename=rename,
        allow=allow,
        jobs=jobs,
        progress=progress,
    )
    forward: LogitsCheck | None = None
    compared: list[Check] = []
    if len(paths) > 1:
        source = open_checkpoint(paths[0], mapping)
        forward = _logits(source, how, computing, jobs) if logits else None
        target = open_checkpoint(paths[1])
        verified = compare(source, target)
        if forward:
            compared = forward.compare(target, paths[1], differs=not verified.ok)
    else:
        verified = compare(paths[0], lock=lock, mapping=mapping)
    _report(paths[-1], verified, compared, forward, form, as_json=as_json, verbose=verbose)
    return exit_code([*verified.checks, *compared])


def _report(
    target: str,
    verified: Verified,
    compared: list[Check],
    forward: LogitsCheck | None,
    form: str,
    *,
    as_json: bool,
    verbose: bool,
) -> None:
    """Print the checks, with those in `compared`, which are from running the models."""
    every = Verified((*verified.checks, *compared), verified.scope)
    if form != "text":
        options.print_checks(every.checks, form)
    elif as_json:
        options.print_json(every.to_dict() | {"logits": forward and forward.as_json()})
    else:
        notes = [check for check in compared if check.outcome == NOTE]
        _print(target, [*verified.checks, *notes], verbose=verbose)
        if forward:
            forward.print()


def _check_use(logits: bool, how: Mapping[str, Any], *, pair: bool, chosen: bool) -> None:
    """Raise a usage error for options that exclude each other."""
    given = [f"--{name}" for name, value in how.items() if value not in (None, "numpy")]
    if given and not logits:
        raise click.UsageError(f"{given[0]} requires --logits")
    if logits and not pair:
        raise click.UsageError("--logits requires SOURCE and TARGET")
    if logits and chosen:
        raise click.UsageError(
            "--logits cannot be combined with --match, --exclude, --root or options for names"
        )
    if how["tokens"] is not None and how["text"] is not None:
        raise click.UsageError("--tokens and --text cannot be combined")
    if how["tokenizer"] is not None and how["text"] is None:
        raise click.UsageError("--tokenizer requires --text")


def _logits(
    source: Checkpoint, how: Mapping[str, Any], computing: ComputeOptions, jobs: int
) -> LogitsCheck:
    from cgpt_convert.cli.logits import LogitsCheck, LogitsOptions
    from cgpt_convert.core.threads import worker_count

    return LogitsCheck(source, LogitsOptions(**how), computing, worker_count(jobs))


def _print(target: str, checks: list[Check], *, verbose: bool) -> None:
    for check in checks:
        if verbose or check.outcome != PASSED or is_unread(check):
            name = f"{printable(check.tensor)}: " if check.tensor else ""
            outcome = style.verdict(check.outcome, check.outcome)
            click.echo(wrapped(f"{outcome}: {name}{printable(check.detail)}", 4))
    failed = sum(check.outcome in (FAILED, ERROR) for check in checks)
    passed = [check for check in checks if check.outcome == PASSED]
    made = failed + len(passed)
    ends = style.verdict(f"{failed:,} of {counted(made, 'check')} failed", FAILED)
    if not failed:
        kinds = Counter(_kind(check) for check in passed)
        ends = "; ".join(f"{n:,} {kind}" for kind, n in kinds.items())
        ends = f"{style.verdict(counted(made, 'check') + ' passed', PASSED)}: {ends}"
    click.echo(wrapped(f"{printable(target)}: {ends}", 4))


def _kind(check: Check) -> str:
    """Return the phrase by which the summary counts a passed check."""
    if is_unread(check):
        return "not readable (identical files)"
    short = {
        "tie": "tied",
        "drop": "dropped",
        "computed": "computed (not compared)",
        "claim": "provenance",
    }
    kind = check.detail.partition(", max |error|")[0]
    return "tied" if kind.startswith("tied to ") else short.get(check.name, printable(kind))

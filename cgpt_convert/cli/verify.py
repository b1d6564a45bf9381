"""`cgpt-convert verify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import click

from cgpt_convert.checks import FAILED, PASSED, Check, exit_code
from cgpt_convert.cli import options
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import counted, wrapped
from cgpt_convert.errors import BadRequest
from cgpt_convert.inert import printable
from cgpt_convert.opening import open_checkpoint
from cgpt_convert.proof.canonical import Weights, weights
from cgpt_convert.select import Wish
from cgpt_convert.tensor import Tensor


@click.command("verify")
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE] TARGET")
@options.remote
@click.option("--lock", metavar="FILE", help="Compare TARGET with what `lock` wrote.")
@click.option("--verbose", "-v", is_flag=True, help="Show every tensor, not only differences.")
@options.match
@options.exclude
@options.root
@options.mapping
@options.jobs
@options.report_format
@options.as_json
def command(
    paths: tuple[str, ...],
    lock: str | None,
    verbose: bool,
    match: tuple[str, ...],
    exclude: tuple[str, ...],
    root: str | None,
    mapping: str | None,
    jobs: int,
    form: str,
    as_json: bool,
) -> int:
    """Compare TARGET with SOURCE, with a lock, or with its own claim. Exit 1 if one differs.

    Complete both ways, bit for bit. What was cast or quantized is made again from SOURCE. The
    globs, --root and --mapping are about SOURCE; with --lock, which has none, about TARGET.
    """
    if len(paths) > (1 if lock else 2):
        raise click.UsageError("give SOURCE and TARGET, or TARGET and --lock, or TARGET alone")
    wish = Wish(root, match, exclude)
    if lock is not None:
        checks = _locked(weights(open_checkpoint(paths[0], mapping), wish), lock, jobs)
    elif len(paths) > 1:
        checks = _converted(weights(open_checkpoint(paths[0], mapping), wish), paths[1], jobs)
    elif wish != Wish() or mapping is not None:
        raise click.UsageError("a file's own claim is about all of it: give no choice")
    else:
        checks = _claiming(paths[0], jobs)
    if form != "text":
        return options.print_checks(checks, form)
    if as_json:
        counts = Counter(check.outcome for check in checks)
        rows = [check._asdict() for check in checks]
        options.print_json({"ok": not exit_code(checks), "outcomes": counts, "checks": rows})
    else:
        _print(paths[-1], checks, verbose=verbose)
    return exit_code(checks)


def _locked(target: Weights, path: str, jobs: int) -> list[Check]:
    from cgpt_convert.proof.against_lock import against_lock
    from cgpt_convert.proof.lock import read_lock

    lock = read_lock(path)
    with progress("verify", _nbytes(target.tensors)) as advance:
        return against_lock(target, lock, jobs, advance)


def _converted(source: Weights, path: str, jobs: int) -> list[Check]:
    from cgpt_convert.proof.against_claim import declared, source_of
    from cgpt_convert.proof.against_source import against_source
    from cgpt_convert.proof.claim import claimed

    written = open_checkpoint(path)
    target, claim = weights(written), claimed(written)
    with progress("verify", _nbytes(target.tensors)) as advance:
        checks = against_source(source, target, jobs, advance)
    if claim is None:
        return checks
    with progress("digest", _nbytes(source.tensors)) as advance:
        return declared(checks, claim) + source_of(claim, source, path, jobs, advance)


def _claiming(path: str, jobs: int) -> list[Check]:
    from cgpt_convert.proof.against_claim import against_claim
    from cgpt_convert.proof.claim import claimed

    checkpoint = open_checkpoint(path)
    claim = claimed(checkpoint)
    if claim is None:
        raise BadRequest(
            "it claims nothing about itself",
            where=path,
            hint="say verify SOURCE TARGET, or --lock FILE; convert writes claims",
        )
    with progress("verify", _nbytes(checkpoint)) as advance:
        return against_claim(checkpoint, claim, jobs, advance)


def _nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _print(target: str, checks: list[Check], *, verbose: bool) -> None:
    for check in checks:
        if verbose or check.outcome != PASSED:
            name = f"{printable(check.tensor)}: " if check.tensor else ""
            click.echo(wrapped(f"{check.outcome}: {name}{printable(check.detail)}", 4))
    failed = sum(check.outcome == FAILED for check in checks)
    ends = f"{failed:,} of {counted(len(checks), 'check')} failed"
    if not failed:
        kinds = Counter(check.detail.partition(", max")[0] for check in checks if check.tensor)
        ends = "; ".join(f"{n:,} {printable(kind)}" for kind, n in _folded(kinds).items())
        ends = f"{counted(len(checks), 'check')} passed: {ends}"
    click.echo(wrapped(f"{printable(target)}: {ends}", 4))


def _folded(kinds: Counter[str]) -> Counter[str]:
    """Counts by kind; names of tensors left out."""
    folded: Counter[str] = Counter()
    for kind, count in kinds.items():
        folded[kind.partition(" to ")[0].partition(":")[0]] += count
    return folded

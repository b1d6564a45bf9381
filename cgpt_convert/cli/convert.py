"""`cgpt-convert convert`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import click

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.cli import options, salvage_option
from cgpt_convert.cli.notes import tell_code
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import counted, size, wrapped
from cgpt_convert.core.text import printable
from cgpt_convert.plan import AddProvenance
from cgpt_convert.targets.plan_conversion import (
    Conversion,
    Target,
    all_targets,
    convert,
    target_for,
    targets,
)
from cgpt_convert.targets.selection import (
    SelectedTensors,
    TensorSelection,
    chosen_names,
    parts,
    under,
)
from cgpt_convert.tensors.dtypes import WISHES
from cgpt_convert.writing.writer import WriteOptions


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """A number of bytes such as 5GB or 500MiB; units are powers of 1000 unless they have an i."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([kKMGT]?)(i?)B?", str(value))
        if match is None:
            self.fail(f"{value!r} is not a size such as 5GB", param, ctx)
        base = 1024 if match[3] else 1000
        try:
            return int(float(match[1]) * base ** " kMGT".index((match[2] or " ").replace("K", "k")))
        except OverflowError:
            self.fail(f"{value!r} is more than can be counted", param, ctx)


class _TargetName(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """The name of a target. Formats of other packages are looked for if no built-in one fits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.choices:
            return super().convert(value, param, ctx)
        return click.Choice(all_targets()).convert(value, param, ctx)


@click.command("convert")
@options.source
@click.option(
    "-o", "--output", required=True, type=options.OutputPath(), help="The file or folder to write."
)
@click.option(
    "--to",
    type=_TargetName(targets()),
    help="The format, also one of an installed plug-in; hf is a folder for transformers.  "
    "[default: from OUTPUT's suffix]",
)
@click.option(
    "--dtype",
    type=click.Choice(WISHES),
    default="keep",
    show_default=True,
    help="Convert floating-point tensors to this type; q* types are for GGUF.",
)
@click.option("--max-shard-size", type=_Size(), help="Split safetensors, torch and hf output.")
@options.wish
@click.option(
    "--tied",
    type=click.Choice(["alias", "copy"]),
    default="alias",
    show_default=True,
    help="Write tied weights once and note the other names, or write each.",
)
@click.option("--tokenizer", metavar="DIR", help="Where the tokenizer is, for hf and gguf.")
@click.option("--no-vocab", is_flag=True, help="Write a GGUF without a vocabulary.")
@click.option("--no-proof", is_flag=True, help="Do not write provenance metadata.")
@click.option(
    "--verify",
    is_flag=True,
    help="Re-read the output and compare it with the source before putting it in place.",
)
@salvage_option.option
@options.mapping
@options.jobs
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@options.overwrite
@options.as_json
def command(
    source: str,
    output: str,
    to: str | None,
    dtype: str,
    max_shard_size: int | None,
    wish: TensorSelection,
    tied: str,
    tokenizer: str | None,
    no_vocab: bool,
    no_proof: bool,
    verify: bool,
    salvage: bool,
    mapping: str | None,
    jobs: int,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Write the tensors of SOURCE in another format, streaming.

    Strided tensors are written in C order; values are not changed unless --dtype says so. The
    same input always gives the same bytes.
    """
    target = Target(
        to or target_for(output),
        output,
        max_shard_size,
        tokenizer,
        vocabulary=not no_vocab,
        provenance=None if no_proof else _provenance,
    )
    wish = wish._replace(dtype=dtype, tied=tied)
    checkpoint = salvage_option.opened(
        source, mapping, lambda opened: chosen_names(opened, wish)[1], salvage=salvage
    )
    tell_code(checkpoint)
    conversion = convert(checkpoint, wish, target)
    settings = WriteOptions(overwrite=overwrite, jobs=jobs)
    if verify:
        from cgpt_convert.verification.readback import reread

        settings.check = functools.partial(reread, conversion, target.to, jobs)
    conversion.check_apart(output)
    if not dry_run:
        _write(conversion, output, settings)
    result = _result(checkpoint, conversion, settings, output, wish)
    result["written"] = not dry_run
    result["verified"] = verify and not dry_run
    if as_json:
        options.print_json(result)
    else:
        _print(result)
    return 1 if result["lost"] else 0


def _write(conversion: Conversion, output: str, settings: WriteOptions) -> None:
    with progress("convert", sum(plan.nbytes for plan in conversion.plans)) as advance:
        settings.advance = advance
        conversion.write(output, settings)


def _result(
    checkpoint: Checkpoint,
    conversion: Conversion,
    settings: WriteOptions,
    output: str,
    wish: TensorSelection,
) -> dict[str, Any]:
    """Return the result for `--json`; docs/reference/json.md lists the keys."""
    chosen, request = conversion.selection, conversion.request
    extras = [name for name in chosen.left_out if name in checkpoint.extras]
    inside = {*under(checkpoint, chosen.root)}
    extras = [name for name in extras if name in inside]
    beside = [name for name in chosen.left_out if name not in inside]
    outside = parts(checkpoint, beside, chosen.root)
    left = {*chosen.left_out}
    written: dict[str, int] = {}
    if wish.root is None and not chosen.root:
        written = parts(checkpoint, [name for name in checkpoint if name not in left])
    files = [{"name": plan.path, "nbytes": plan.nbytes} for plan in conversion.plans]
    lost = {
        name: {"overflowed": counts.overflowed, "zeroed": counts.zeroed}
        for name, counts in settings.lossy().items()
    }
    return {
        "source": checkpoint.path,
        "output": conversion.opened_by(output),
        "files": files,
        "nbytes": sum(file["nbytes"] for file in files),
        "tensors": len(request.tensors),
        "root": chosen.root or None,
        "left_out": chosen.left_out,
        "outside": outside,
        "extras": {name: checkpoint.extras[name] for name in extras},
        "parts": written if any(p and p in checkpoint.containers for p in written) else {},
        "lost": salvage_option.rows(chosen.lost),
        "aliases": request.aliases,
        "reordered": [t.name for t in request.tensors if not t.is_c_order],
        "cast": [t.name for t in request.tensors if t.target],
        "lossy": lost,
        "not_finite": {
            name: {"nan": counts.nan, "infinite": counts.infinite}
            for name, counts in settings.not_finite().items()
        },
        "empty": [t.name for t in request.tensors if 0 in t.shape],
        "model": list(conversion.lines),
        "warnings": [str(f) for f in checkpoint.findings if f.rule.level != "note"],
    }


_NAMED = 3
_TIES = 100


def _print(result: dict[str, Any]) -> None:
    verb = "wrote" if result["written"] else "would write"
    files = result["files"]
    count = f" in {len(files)} files" if len(files) > 1 else ""
    if result["output"].endswith(".index.json"):
        count = f" and {counted(len(files) - 1, 'shard')}"
    line = f"{verb} {printable(result['output'])}{count}: "
    verified = ", read again and compared" if result["verified"] else ""
    _say(f"{line}{counted(result['tensors'], 'tensor')}, {size(result['nbytes'])}{verified}")
    _print_choice(result)
    salvage_option.show(result["lost"])
    for sentence in result["model"]:
        _say(f"  {sentence}")
    if not result["model"]:  # those lines include ties
        _print_ties(list(result["aliases"].items()))
    if result["reordered"]:
        _say(f"  put in C order: {_names(result['reordered'])}")
    for name, lost in result["lossy"].items():
        counts = f"{lost['overflowed']:,} overflowed, {lost['zeroed']:,} became zero"
        _say(f"  lossy: {printable(name)}: {counts}")
    for warning in (*_warnings(result), *result["warnings"]):
        click.echo(f"  warning: {printable(warning)}", err=True)


def _print_choice(result: dict[str, Any]) -> None:
    """Print the root of the tensors, and the tensors of the file that are skipped."""
    root = printable(result["root"] or "")
    if root:
        _say(f"  taken from under {root!r}")
    if result["outside"]:
        _say(f"  skipped outside {root!r}: {_parts(result['outside'])}")
    if result["extras"]:
        kinds: dict[str, list[str]] = {}
        for name, what in result["extras"].items():
            kinds.setdefault(what, []).append(name)
        for what, names in kinds.items():
            _say(f"  skipped, as state_dict() does not contain it: {_names(names)} ({what})")
    if result["parts"]:
        _say(
            "  no key such as state_dict holds the weights, so that all tensors are written under "
            f"their full names: {_parts(result['parts'])}; use --root KEY to write one part"
        )


_PARTS = 8


def _parts(counts: dict[str, int]) -> str:
    """Return the parts of a checkpoint and their numbers of tensors as text."""
    sentences = [
        f"{printable(part) or 'in none of them'} ({counted(count, 'tensor')})"
        for part, count in list(counts.items())[:_PARTS]
    ]
    more = len(counts) - _PARTS
    return ", ".join([*sentences, f"and {more:,} more (--json has all)"] if more > 0 else sentences)


def _warnings(result: dict[str, Any]) -> Iterator[str]:
    """Yield warnings about values, which are written unchanged."""
    special = result["not_finite"]
    if special:
        nan, infinite = (sum(row[key] for row in special.values()) for key in ("nan", "infinite"))
        total = " and ".join(
            f"{count:,} {what}" for count, what in ((nan, "NaN"), (infinite, "infinite")) if count
        )
        verb = "contains" if len(special) == 1 else "contain"
        count = counted(len(special), "tensor")
        yield f"{count} {verb} values that are not finite ({total}): {_names(list(special))}"
    if result["empty"]:
        verb = "has" if len(result["empty"]) == 1 else "have"
        yield (
            f"{counted(len(result['empty']), 'tensor')} {verb} no elements: "
            f"{_names(result['empty'])}. DeepSpeed's ZeRO stage 3 saves such placeholders; its "
            "zero_to_fp32.py collects the weights"
        )


def _print_ties(ties: list[tuple[str, str]]) -> None:
    for name, kept in ties[:_TIES]:
        _say(f"  tied: {printable(name)} is {printable(kept)}, written once")
    if len(ties) > _TIES:
        _say(f"  and {len(ties) - _TIES:,} more names that are tied (--json has all)")


def _say(line: str) -> None:
    click.echo(wrapped(line, 4))


def _names(names: list[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_NAMED])
    if len(names) <= _NAMED:
        return shown
    return f"{len(names):,} tensors ({shown} ...)"


def _provenance(chosen: SelectedTensors) -> AddProvenance:
    from cgpt_convert.verification import provenance

    return functools.partial(provenance.signed, chosen)

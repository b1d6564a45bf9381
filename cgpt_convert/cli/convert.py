"""`cgpt-convert convert`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from cgpt_convert.api.converting import CastSummary, Converted, convert
from cgpt_convert.cli import options, salvage_option
from cgpt_convert.cli.notes import tell_code
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import size, wrapped
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.core.text import counted, parse_size, printable
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.targets.plan_conversion import all_targets, target_for, targets
from cgpt_convert.tensors.dtypes import BLOCK_CASTS, WISHES, cast_target


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """A number of bytes such as 5GB or 500MiB; units are powers of 1000 unless they have an i."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(str(value))
        except BadRequest as error:
            self.fail(error.message, param, ctx)


class _TargetName(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """The name of a target. Formats of other packages are looked for if no built-in one fits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.choices:
            return super().convert(value, param, ctx)
        return click.Choice(all_targets()).convert(value, param, ctx)


class _Dtype(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """The name of a type that tensors can be cast to, in any common spelling."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002  click's signature
        ctx: click.Context | None,  # noqa: ARG002
    ) -> str:
        try:
            return cast_target(str(value))
        except BadRequest as error:
            raise error.at("--dtype") from None


@click.command("convert", cls=options.OrderedCommand)
@options.source
@click.option(
    "-o", "--output", required=True, type=options.OutputPath(), help="File or folder to write."
)
@click.option(
    "--to",
    type=_TargetName(targets()),
    help="Output format, also one of an installed plug-in.  [default: from OUTPUT's suffix]",
)
@click.option(
    "--dtype",
    type=_Dtype(WISHES),
    default="keep",
    show_default=True,
    help="Convert floating-point tensors to this type; q* types are for GGUF.",
)
@click.option(
    "--max-shard-size",
    type=_Size(),
    help="Split safetensors, torch and hf output into files of at most this size, such as 5GB.",
)
@options.selection
@options.renames
@click.option(
    "--tied",
    type=click.Choice(["alias", "copy"]),
    default="alias",
    show_default=True,
    help="Write tied weights once (alias), or under each of their names (copy).",
)
@click.option(
    "--tokenizer",
    metavar="DIR",
    help="Folder of the tokenizer, for hf and gguf.  [default: in or next to the model]",
)
@click.option("--no-vocab", is_flag=True, help="Write GGUF without a vocabulary.")
@click.option("--no-proof", is_flag=True, help="Do not write provenance metadata.")
@click.option(
    "--verify",
    is_flag=True,
    help="Re-read the output and compare it with the source before putting it in place.",
)
@salvage_option.option
@options.mapping
@options.jobs
@click.option("--dry-run", is_flag=True, help="Print what would be written, without writing it.")
@click.option("--verbose", "-v", is_flag=True, help="Show the losses of each cast tensor.")
@options.overwrite
@options.as_json
def command(
    source: str,
    output: str,
    to: str | None,
    dtype: str,
    max_shard_size: int | None,
    match: tuple[str, ...],
    exclude: tuple[str, ...],
    root: str | None,
    rename: list[tuple[str, str]],
    tied: str,
    tokenizer: str | None,
    no_vocab: bool,
    no_proof: bool,
    verify: bool,
    salvage: bool,
    mapping: str | None,
    jobs: int,
    dry_run: bool,
    verbose: bool,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Write the tensors of SOURCE in another format, streaming.

    Strided tensors are made contiguous. Values change only with --dtype. The same input always
    gives the same bytes. The format hf is a folder for transformers.
    """
    to = to or target_for(output)  # an unknown suffix is an error before anything is read
    checkpoint = open_checkpoint(source, mapping, salvage=salvage)
    tell_code(checkpoint)
    made = convert(
        checkpoint,
        output,
        to=to,
        dtype=dtype,
        root=root,
        match=match,
        exclude=exclude,
        rename=rename,
        tied=tied,
        max_shard_size=max_shard_size,
        tokenizer=tokenizer,
        vocabulary=not no_vocab,
        provenance=not no_proof,
        verify=verify,
        salvage=salvage,
        dry_run=dry_run,
        overwrite=overwrite,
        jobs=jobs,
        progress=progress,
    )
    if as_json:
        options.print_json(made.to_dict())
    else:
        _print(made, verbose=verbose)
    return 1 if made.lost else 0


_NAMED = 3
_TIES = 100


def _print(made: Converted, *, verbose: bool) -> None:
    verb = "wrote" if made.written else "would write"
    files = made.files
    count = f" in {len(files)} files" if len(files) > 1 else ""
    if made.path.endswith(".index.json"):
        count = f" and {counted(len(files) - 1, 'shard')}"
    line = f"{verb} {printable(made.path)}{count}: "
    verified = ", read back and compared" if made.verified else ""
    _say(f"{line}{counted(len(made.tensors), 'tensor')}, {size(made.nbytes)}{verified}")
    _print_choice(made)
    _print_renamed(made)
    salvage_option.show(made.lost)
    for sentence in made.lines:
        _say(f"  {sentence}")
    if not made.lines:  # those lines include ties
        _print_ties(list(made.aliases.items()))
    if made.reordered:
        _say(f"  made contiguous: {_names(made.reordered)}")
    for casts in made.casts:
        _say(f"  {_cast(casts)}")
    for name, counts in made.lossy.items() if verbose else ():
        _say(f"    {printable(name)}: {counts.zeroed:,} became 0, {counts.overflowed:,} overflowed")
    for warning in (*_warnings(made), *made.warnings):
        click.echo(f"  warning: {printable(warning)}", err=True)


def _cast(casts: CastSummary) -> str:
    """Return the sentence about the casts to one type, and about what they lost."""
    tensors = f"{counted(casts.tensors, 'tensor')} to {casts.dtype}"
    zeroed, overflowed = casts.zeroed, casts.overflowed
    blocks = casts.dtype in BLOCK_CASTS
    if zeroed is None or overflowed is None:
        return f"would {'quantize' if blocks else 'cast'} {tensors}"
    if blocks:
        scales = f": {zeroed + overflowed:,} values in blocks whose scale became 0 or infinite"
        return f"quantized {tensors}" + scales * bool(zeroed + overflowed)
    of = f"of {counted(casts.values, 'value')}"
    lost = f"none {of} became 0 or overflowed"
    if zeroed:
        lost = f"{zeroed:,} {of} became 0, {f'{overflowed:,}' if overflowed else 'none'} overflowed"
    elif overflowed:
        lost = f"{overflowed:,} {of} overflowed, none became 0"
    return f"cast {tensors}: {lost}"


def _print_choice(made: Converted) -> None:
    """Print the root of the tensors, and the tensors of the file that are skipped."""
    root = printable(made.root)
    if root:
        _say(f"  using the tensors under {root!r}")
    if made.outside:
        _say(f"  skipped outside {root!r}: {_parts(made.outside)}")
    if made.extras:
        kinds: dict[str, list[str]] = {}
        for name, what in made.extras.items():
            kinds.setdefault(what, []).append(name)
        for what, names in kinds.items():
            _say(f"  skipped, as state_dict() does not contain it: {_names(names)} ({what})")
    if made.parts:
        _say(
            "  no key such as state_dict contains the weights: all tensors are written under their "
            f"full names: {_parts(made.parts)}; use --root KEY to write one part"
        )


def _print_renamed(made: Converted) -> None:
    """Print the number of renamed tensors; each old and new name for a dry run."""
    if not made.renamed:
        return
    count = counted(len(made.renamed), "tensor")
    if made.written:
        _say(f"  renamed {count}")
        return
    _say(f"  would rename {count}:")
    for old, new in made.renamed.items():
        _say(f"    {printable(old)} -> {printable(new)}")


_PARTS = 8


def _parts(counts: dict[str, int]) -> str:
    """Return the parts of a checkpoint and their numbers of tensors as text."""
    sentences = [
        f"{printable(part) or 'in none of them'} ({counted(count, 'tensor')})"
        for part, count in list(counts.items())[:_PARTS]
    ]
    more = len(counts) - _PARTS
    return ", ".join([*sentences, f"and {more:,} more (--json has all)"] if more > 0 else sentences)


def _warnings(made: Converted) -> Iterator[str]:
    """Yield warnings about values, which are written unchanged."""
    special = made.not_finite
    if special:
        nan = sum(counts.nan for counts in special.values())
        infinite = sum(counts.infinite for counts in special.values())
        total = " and ".join(
            f"{count:,} {what}" for count, what in ((nan, "NaN"), (infinite, "infinite")) if count
        )
        verb = "contains" if len(special) == 1 else "contain"
        count = counted(len(special), "tensor")
        yield f"{count} {verb} values that are not finite ({total}): {_names([*special])}"
    if made.empty:
        verb = "has" if len(made.empty) == 1 else "have"
        yield (
            f"{counted(len(made.empty), 'tensor')} {verb} no elements: "
            f"{_names(made.empty)}. DeepSpeed's ZeRO stage 3 saves such placeholders; its "
            "zero_to_fp32.py collects the weights"
        )


def _print_ties(ties: list[tuple[str, str]]) -> None:
    for name, kept in ties[:_TIES]:
        _say(f"  tied: {printable(name)} shares {printable(kept)}, written once")
    if len(ties) > _TIES:
        _say(f"  and {len(ties) - _TIES:,} more names that are tied (--json has all)")


def _say(line: str) -> None:
    click.echo(wrapped(line, 4))


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_NAMED])
    if len(names) <= _NAMED:
        return shown
    return f"{len(names):,} tensors ({shown} ...)"

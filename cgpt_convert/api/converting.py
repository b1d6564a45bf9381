"""`convert`, and its result."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cgpt_convert.api.arguments import (
    Globs,
    NameRules,
    Path,
    Source,
    opened,
    output_path,
    patterns,
    rules,
)
from cgpt_convert.checkpoint import Checkpoint, MissingTensor
from cgpt_convert.core.text import counted, parse_size
from cgpt_convert.core.threads import Progress, no_progress
from cgpt_convert.plan import AddProvenance
from cgpt_convert.targets import plan_conversion
from cgpt_convert.targets.plan_conversion import Conversion, Target, target_for
from cgpt_convert.targets.selection import (
    SelectedTensors,
    TensorSelection,
    chosen_names,
    parts,
    under,
)
from cgpt_convert.tensors.dtypes import dtype_name
from cgpt_convert.tensors.non_finite import NonFiniteCounts
from cgpt_convert.tensors.read import CastCounts
from cgpt_convert.tensors.tensor import Tensor
from cgpt_convert.writing.writer import WriteOptions


class WrittenFile(NamedTuple):
    """A file of the output. `name` is its path relative to the output's folder."""

    path: str
    name: str
    nbytes: int


class CastSummary(NamedTuple):
    """The casts to one type. The losses are None for a dry run.

    `overflowed` counts finite values that became infinite, `zeroed` values that became zero. For
    quantized types they count the values in blocks whose scale did.
    """

    dtype: str
    tensors: int
    values: int  # elements of these tensors
    overflowed: int | None
    zeroed: int | None


@dataclass(frozen=True, slots=True, repr=False)
class Converted:
    """The output of `convert`; of a dry run, the output that it would write."""

    source: str
    path: str  # the path to open: the file, the folder, or the index of the shards
    files: tuple[WrittenFile, ...]
    written: bool  # False for a dry run
    verified: bool  # whether the output was read back and compared with the source
    root: str  # the key that contains the tensors in the source; "" for none
    tensors: tuple[str, ...]  # the names written
    renamed: dict[str, str]  # name in the source -> name given by `rename`, where they differ
    aliases: dict[str, str]  # name of a tied weight -> name under which it is written
    reordered: tuple[str, ...]  # tensors that were made contiguous (C order)
    cast: tuple[str, ...]
    casts: tuple[CastSummary, ...]  # of these, one for each type
    empty: tuple[str, ...]  # tensors without elements
    lossy: dict[str, CastCounts]  # values that a cast made infinite or zero, by tensor
    not_finite: dict[str, NonFiniteCounts]  # NaN and infinite values written, by tensor
    lost: dict[str, MissingTensor]  # tensors that `salvage` skipped, with the reasons
    left_out: tuple[str, ...]  # tensors of the source that were not selected
    extras: dict[str, str]  # those of `left_out` that state_dict() does not contain -> their kind
    outside: dict[str, int]  # the number of `left_out` tensors in each other part of the source
    parts: dict[str, int]  # the number of tensors in each part, where no part was chosen
    lines: tuple[str, ...]  # information about a whole model
    warnings: tuple[str, ...]  # of the source

    def __repr__(self) -> str:
        verb = "" if self.written else " (not written)"
        count = counted(len(self.tensors), "tensor")
        return f"<Converted {self.path!r}{verb}: {count}, {self.nbytes:,} bytes>"

    @property
    def nbytes(self) -> int:
        """The size of all files."""
        return sum(file.nbytes for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return the output of `convert --json`; docs/reference/json.md lists the keys."""
        return {
            "source": self.source,
            "output": self.path,
            "files": [{"name": file.name, "nbytes": file.nbytes} for file in self.files],
            "nbytes": self.nbytes,
            "tensors": len(self.tensors),
            "root": self.root or None,
            "left_out": [*self.left_out],
            "outside": self.outside,
            "extras": self.extras,
            "parts": self.parts,
            "lost": [{"name": name, **lost._asdict()} for name, lost in self.lost.items()],
            "renamed": self.renamed,
            "aliases": self.aliases,
            "reordered": [*self.reordered],
            "cast": [*self.cast],
            "casts": [casts._asdict() for casts in self.casts],
            "lossy": {
                name: {"overflowed": counts.overflowed, "zeroed": counts.zeroed}
                for name, counts in self.lossy.items()
            },
            "not_finite": {
                name: {"nan": counts.nan, "infinite": counts.infinite}
                for name, counts in self.not_finite.items()
            },
            "empty": [*self.empty],
            "model": [*self.lines],
            "warnings": [*self.warnings],
            "written": self.written,
            "verified": self.verified,
        }


def convert(
    source: Source,
    output: Path,
    *,
    to: str | None = None,
    dtype: object = "keep",
    root: str | None = None,
    match: Globs = (),
    exclude: Globs = (),
    rename: NameRules = (),
    tied: str = "alias",
    max_shard_size: int | str | None = None,
    tokenizer: Path | None = None,
    vocabulary: bool = True,
    provenance: bool = True,
    verify: bool = False,
    salvage: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    mapping: str | None = None,
    jobs: int = 0,
    progress: Progress = no_progress,
) -> Converted:
    """Write the tensors of `source` to `output`, streaming, in the format of its suffix or `to`.

    `dtype` casts floating-point tensors; it is a name, or a type of torch or NumPy.
    `rename` has rules for new names, applied in order: a text "REGEX=>REPLACEMENT", a mapping of
    old to new names, or a pair such as ("strip-prefix", "module.") or ("add-prefix", "model.").
    `max_shard_size` is in bytes, or a text such as "5GB". With `verify`, the output is
    read back and compared with the source before it is renamed into place. With `salvage`, the
    intact tensors of a damaged file are written. A dry run writes nothing. Raises BadRequest if the
    output would replace an input, and CannotWrite if it exists and `overwrite` is false.
    """
    path = output_path(output)
    target = Target(
        to or target_for(path),
        path,
        parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size,
        None if tokenizer is None else os.fspath(tokenizer),
        vocabulary=vocabulary,
        provenance=_add_provenance if provenance else None,
    )
    wish = TensorSelection(
        root, patterns(match), patterns(exclude), dtype_name(dtype), tied, rules(rename)
    )
    checkpoint = opened(source, mapping, salvage=salvage)
    if salvage:
        from cgpt_convert.formats.stored_checksums import intact

        checkpoint = intact(checkpoint, chosen_names(checkpoint, wish)[1], progress)
    conversion = plan_conversion.convert(checkpoint, wish, target)
    settings = WriteOptions(overwrite=overwrite, jobs=jobs)
    if verify:
        from cgpt_convert.verification.readback import reread

        settings.check = functools.partial(reread, conversion, target.to, jobs)
    conversion.check_apart(path)
    if not dry_run:
        with progress("writing", sum(plan.nbytes for plan in conversion.plans)) as advance:
            settings.advance = advance
            conversion.write(path, settings)
    made = _Made(checkpoint, wish, conversion, settings)
    return _converted(made, path, written=not dry_run, verified=verify and not dry_run)


class _Made(NamedTuple):
    """The inputs and the plan of a conversion."""

    checkpoint: Checkpoint
    wish: TensorSelection
    conversion: Conversion
    settings: WriteOptions


def _converted(made: _Made, output: str, *, written: bool, verified: bool) -> Converted:
    checkpoint, wish, conversion, settings = made
    chosen, tensors = conversion.selection, conversion.request.tensors
    inside = {*under(checkpoint, chosen.root)}
    return Converted(
        source=checkpoint.path,
        path=conversion.opened_by(output),
        files=tuple(
            WrittenFile(path, plan.path, plan.nbytes)
            for path, plan in zip(conversion.paths(output), conversion.plans, strict=True)
        ),
        written=written,
        verified=verified,
        root=chosen.root,
        tensors=tuple(tensor.name for tensor in tensors),
        renamed=chosen.renamed,
        aliases=dict(conversion.request.aliases),
        reordered=tuple(tensor.name for tensor in tensors if not tensor.is_c_order),
        cast=tuple(tensor.name for tensor in tensors if tensor.target),
        casts=_casts(tensors, settings.lossy() if written else None),
        empty=tuple(tensor.name for tensor in tensors if 0 in tensor.shape),
        lossy=settings.lossy(),
        not_finite=settings.not_finite(),
        lost=chosen.lost,
        left_out=tuple(chosen.left_out),
        extras={
            name: checkpoint.extras[name]
            for name in chosen.left_out
            if name in checkpoint.extras and name in inside
        },
        outside=parts(
            checkpoint, [name for name in chosen.left_out if name not in inside], chosen.root
        ),
        parts=_parts(checkpoint, chosen) if wish.root is None and not chosen.root else {},
        lines=conversion.lines,
        warnings=tuple(str(f) for f in checkpoint.findings if f.rule.level != "note"),
    )


def _casts(
    tensors: Sequence[Tensor], lossy: Mapping[str, CastCounts] | None
) -> tuple[CastSummary, ...]:
    """Return a summary for each type that tensors are cast to, in the order of the tensors."""
    by_type: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.target:
            by_type.setdefault(tensor.target.name, []).append(tensor)
    return tuple(
        CastSummary(
            dtype,
            len(cast),
            sum(tensor.numel for tensor in cast),
            None
            if lossy is None
            else sum(lossy[t.name].overflowed for t in cast if t.name in lossy),
            None if lossy is None else sum(lossy[t.name].zeroed for t in cast if t.name in lossy),
        )
        for dtype, cast in by_type.items()
    )


def _parts(checkpoint: Checkpoint, chosen: SelectedTensors) -> dict[str, int]:
    """Return the number of written tensors in each part; empty if there are no parts."""
    left = {*chosen.left_out}
    counts = parts(checkpoint, [name for name in checkpoint if name not in left])
    return counts if any(part in checkpoint.containers for part in counts if part) else {}


def _add_provenance(chosen: SelectedTensors) -> AddProvenance:
    from cgpt_convert.verification import provenance

    return functools.partial(provenance.signed, chosen)

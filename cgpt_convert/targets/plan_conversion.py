"""Plan a conversion from a checkpoint and a request.

A target is a format, which stores any tensors, or a row of `MODEL_TARGETS`, which stores a model
with its names, configuration and tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.core.threads import step
from cgpt_convert.formats import registry
from cgpt_convert.plan import AddProvenance, FilePlan, Request, unsigned
from cgpt_convert.sources.paths import is_url
from cgpt_convert.targets.hf_view import undone
from cgpt_convert.targets.model_targets import (
    MODEL_TARGETS,
    ModelRequest,
    plan_model,
    select_model,
)
from cgpt_convert.targets.selection import SelectedTensors, TensorSelection, select
from cgpt_convert.tensors.dtypes import BLOCK_CASTS, cast_target
from cgpt_convert.writing.destination import write_files, write_folder
from cgpt_convert.writing.output_checks import check_apart, inputs_of
from cgpt_convert.writing.writer import WriteOptions

TIED = ("alias", "copy")  # the values of `TensorSelection.tied`


@dataclass(frozen=True)
class Target:
    """The output format and path. `tokenizer` and `vocabulary` apply to whole models."""

    to: str  # the name of a format or of a whole-model target
    output: str  # the path; its last part is the file name
    max_shard_nbytes: int | None = None
    tokenizer: str | None = None  # a folder that takes precedence over the source's
    vocabulary: bool = True
    # makes the function that adds provenance metadata; None writes none
    provenance: Callable[[SelectedTensors], AddProvenance] | None = None


@dataclass(frozen=True)
class Conversion:
    """Files to write, in a new folder or side by side, and lines of information."""

    plans: list[FilePlan]
    selection: SelectedTensors
    request: Request
    lines: tuple[str, ...] = ()
    folder: bool = False
    inputs: tuple[str, ...] = ()  # paths it is made from, which the output must not replace

    def check_apart(self, output: str) -> None:
        """Raise BadRequest if writing to `output` would replace an input."""
        paths = [output] if self.folder else self.paths(output)
        check_apart(self.plans, self.inputs, paths, folder=self.folder)

    def paths(self, output: str) -> list[str]:
        """Return the path of each file that is written for the output `output`."""
        folder = output if self.folder else os.path.dirname(output)
        return [os.path.join(folder, plan.path) for plan in self.plans]

    def write(self, output: str, options: WriteOptions | None = None) -> list[str]:
        """Write the files to `output`, a path or a URL; return the paths written."""
        settings = options or WriteOptions()
        settings.inputs += self.inputs
        if self.folder:
            return write_folder(self.plans, output, settings)
        return write_files(self.plans, os.path.dirname(output), settings)

    def opened_by(self, output: str) -> str:
        """Return the path that opens the output: the index if it has shards, else `output`."""
        last = self.plans[-1].path
        if self.folder or not last.endswith(".index.json"):
            return output
        return os.path.join(os.path.dirname(output), last)


def targets() -> list[str]:
    """Return the values of `Target.to`, without the formats of other packages."""
    return sorted({*registry.names(), *MODEL_TARGETS})


def all_targets() -> list[str]:
    """Return the values of `Target.to`; finding the formats of other packages takes 30 ms."""
    return sorted({*registry.writable(), *MODEL_TARGETS})


def target_for(output: str) -> str:
    """Return the target for the suffix of `output`. Raises BadRequest if it is unknown."""
    form = registry.for_suffix(output)
    if form is None:
        raise BadRequest(
            "cannot infer the output format from the file name",
            where=output,
            hint=f"add --to {'|'.join(all_targets())}",
        )
    return form.name


def convert(checkpoint: Checkpoint, wish: TensorSelection, target: Target) -> Conversion:
    """Return the plan; no tensor data is read or written. Raises BadRequest if impossible."""
    wish = wish._replace(dtype=cast_target(wish.dtype))
    _check(wish, target)
    with step("planning"):
        made = _planned(checkpoint, wish, target)
    return replace(made, inputs=inputs_of(checkpoint) + _beside(checkpoint, target))


def _beside(checkpoint: Checkpoint, target: Target) -> tuple[str, ...]:
    """Return the paths of configuration and tokenizer files that a whole model may use."""
    if target.to not in MODEL_TARGETS:
        return ()
    from cgpt_convert.targets.hf.hf_tokenizer import NAMES

    folders = (os.path.dirname(checkpoint.path), target.tokenizer)
    if os.path.isdir(checkpoint.path):
        folders = (checkpoint.path, target.tokenizer)
    local_folders = (f for f in folders if f is not None and not is_url(f))
    names = (*NAMES, "config.json", "generation_config.json")
    return tuple(os.path.join(folder, name) for folder in local_folders for name in names)


def _planned(checkpoint: Checkpoint, wish: TensorSelection, target: Target) -> Conversion:
    name = os.path.basename(target.output.rstrip("/"))
    whole = MODEL_TARGETS.get(target.to)
    if whole is not None:
        checkpoint, chosen = select_model(whole, checkpoint, wish)
        made = plan_model(
            whole,
            ModelRequest(
                checkpoint,
                chosen.tensors,
                name,
                wish.dtype,
                target.tokenizer,
                target.vocabulary,
                target.max_shard_nbytes,
            ),
            _provenance(chosen, target),
        )
        return Conversion(made.plans, chosen, made.request, made.lines, folder=whole.folder)
    checkpoint = undone(checkpoint)
    form = registry.by_name(target.to)
    chosen = select(checkpoint, wish)
    request = Request(
        name, tuple(chosen.tensors), chosen.aliases, max_shard_nbytes=target.max_shard_nbytes
    )
    request = _provenance(chosen, target)(request)
    return Conversion(form.planned(request), chosen, request, folder=form.folder)


def _provenance(chosen: SelectedTensors, target: Target) -> AddProvenance:
    return unsigned if target.provenance is None else target.provenance(chosen)


def _check(wish: TensorSelection, target: Target) -> None:
    """Raise BadRequest for settings that do not apply to the target."""
    if wish.tied not in TIED:
        raise BadRequest(f"{wish.tied!r} is not a valid tied", hint=f"use one of {', '.join(TIED)}")
    model = MODEL_TARGETS.get(target.to)
    form = registry.by_name(model.format if model else target.to)
    if not (model or form).folder and not os.path.basename(target.output):
        raise BadRequest(
            f"{target.to} output is a file, not a folder",
            where=target.output,
            hint=f"pass a file name such as {os.path.join(target.output, 'model' + form.suffix)}",
        )
    if wish.dtype in BLOCK_CASTS and not (model and model.blocks):
        able = ", ".join(name for name, each in MODEL_TARGETS.items() if each.blocks)
        raise BadRequest(
            f"{target.to} does not support {wish.dtype}",
            hint=f"use --to {able}, or another --dtype",
        )
    if target.tokenizer is not None and not model:
        raise BadRequest(f"{target.to} output has no tokenizer", hint="remove --tokenizer")
    if not target.vocabulary and not (model and model.vocabulary):
        raise BadRequest(f"{target.to} output has no vocabulary", hint="remove --no-vocab")
    if target.max_shard_nbytes is not None and model and not model.shards:
        raise BadRequest(f"{target.to} output cannot be sharded", hint="remove --max-shard-size")

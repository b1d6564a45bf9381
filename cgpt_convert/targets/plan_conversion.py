"""Plan a conversion from a checkpoint and a request. Only this module distinguishes targets.

Most targets are formats, which store any tensors. `gguf` and `hf` store a model, including its
names, configuration and tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.formats import registry
from cgpt_convert.plan import AddProvenance, FilePlan, Request, unsigned
from cgpt_convert.sources.paths import is_url
from cgpt_convert.targets.hf_view import undone
from cgpt_convert.targets.selection import SelectedTensors, TensorSelection, select
from cgpt_convert.tensors.dtypes import BLOCK_CASTS, WISHES
from cgpt_convert.writing.destination import write_files, write_folder
from cgpt_convert.writing.source_guard import check_apart, inputs_of
from cgpt_convert.writing.writer import WriteOptions

HF, GGUF = "hf", "gguf"
TIED = ("alias", "copy")  # what `TensorSelection.tied` may be


@dataclass(frozen=True)
class Target:
    """The output format and path. `tokenizer` and `vocabulary` apply to whole models."""

    to: str  # a format's name, or "hf"
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
        paths = [output]
        if not self.folder:
            paths = [os.path.join(os.path.dirname(output), plan.path) for plan in self.plans]
        check_apart(self.plans, self.inputs, paths, folder=self.folder)

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
    """Return what `Target.to` may be, less the formats of other packages."""
    return sorted([*registry.names(), HF])


def all_targets() -> list[str]:
    """Return what `Target.to` may be; looking for the formats of other packages takes 30 ms."""
    return sorted([*registry.writable(), HF])


def target_for(output: str) -> str:
    """Return the target for the suffix of `output`. Raises BadRequest if it is unknown."""
    form = registry.for_suffix(output)
    if form is None:
        raise BadRequest(
            "the format is not clear from the name",
            where=output,
            hint=f"say --to {'|'.join(all_targets())}",
        )
    return form.name


def convert(checkpoint: Checkpoint, wish: TensorSelection, target: Target) -> Conversion:
    """Return the plan; no tensor data is read or written. Raises BadRequest if impossible."""
    _check(wish, target)
    made = _planned(checkpoint, wish, target)
    return replace(made, inputs=inputs_of(checkpoint) + _beside(checkpoint, target))


def _beside(checkpoint: Checkpoint, target: Target) -> tuple[str, ...]:
    """Return the paths of configuration and tokenizer files that a whole model may use."""
    if target.to not in (GGUF, HF):
        return ()
    from cgpt_convert.targets.hf.hf_tokenizer import NAMES

    folders = (os.path.dirname(checkpoint.path), target.tokenizer)
    if os.path.isdir(checkpoint.path):
        folders = (checkpoint.path, target.tokenizer)
    found = (f for f in folders if f is not None and not is_url(f))
    names = (*NAMES, "config.json", "generation_config.json")
    return tuple(os.path.join(folder, name) for folder in found for name in names)


def _planned(checkpoint: Checkpoint, wish: TensorSelection, target: Target) -> Conversion:
    name = os.path.basename(target.output.rstrip("/"))
    if target.to == GGUF:
        from cgpt_convert.targets.llama_cpp import export
        from cgpt_convert.targets.whole_model import refuse_incomplete

        chosen = select(checkpoint, wish._replace(dtype="keep", tied="copy"))
        refuse_incomplete(chosen, checkpoint.path)
        made = export.plan(
            checkpoint,
            chosen.tensors,
            name,
            wish.dtype,
            target.tokenizer,
            no_vocab=not target.vocabulary,
            sign=_provenance(chosen, target),
        )
        return Conversion(made.plans, chosen, made.request, made.lines)
    checkpoint = undone(checkpoint)
    if target.to == HF:
        from cgpt_convert.targets.hf import hf_folder
        from cgpt_convert.targets.llama_cpp import restore_hf
        from cgpt_convert.targets.whole_model import refuse_incomplete

        chosen = select(checkpoint, wish._replace(tied="copy"))
        refuse_incomplete(chosen, checkpoint.path)
        folder = hf_folder.plan(
            checkpoint.path,
            chosen.tensors,
            target.tokenizer,
            target.max_shard_nbytes,
            inside=restore_hf.inside(checkpoint),
            sign=_provenance(chosen, target),
        )
        return Conversion(folder.plans, chosen, folder.request, folder.lines, folder=True)
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
    for what, value, choices in (("dtype", wish.dtype, WISHES), ("tied", wish.tied, TIED)):
        if value not in choices:
            raise BadRequest(
                f"{value!r} is not a value of {what}", hint=f"choose from {', '.join(choices)}"
            )
    form = registry.by_name(target.to) if target.to != HF else None
    if form and not form.folder and not os.path.basename(target.output):
        raise BadRequest(
            f"{form.name} is written as a file, not as a folder",
            where=target.output,
            hint=f"name it, say {os.path.join(target.output, 'model' + form.suffix)}",
        )
    model = target.to in (GGUF, HF)
    if wish.dtype in BLOCK_CASTS and target.to != GGUF:
        raise BadRequest(f"only GGUF has {wish.dtype}", hint="write a .gguf file, or another dtype")
    if target.tokenizer is not None and not model:
        raise BadRequest(f"{target.to} holds no tokenizer", hint="leave --tokenizer out")
    if not target.vocabulary and target.to != GGUF:
        raise BadRequest(f"{target.to} holds no vocabulary", hint="leave --no-vocab out")
    if target.max_shard_nbytes is not None and target.to == GGUF:
        raise BadRequest("GGUF files are not split here", hint="leave --max-shard-size out")

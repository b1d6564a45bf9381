"""Outputs that are whole models: names, configuration and tokenizer as another program has them.

Each is a row of `MODEL_TARGETS`. Its function plans what is specific to it; the sequence around it
(select, check that nothing is missing, plan, add provenance metadata) is `plan_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Malformed
from cgpt_convert.core.lazy import LazyReference
from cgpt_convert.core.text import printable
from cgpt_convert.formats import registry
from cgpt_convert.plan import AddProvenance, FilePlan, Request, unsigned
from cgpt_convert.targets.hf_view import undone
from cgpt_convert.targets.selection import SelectedTensors, TensorSelection, select
from cgpt_convert.tensors.tensor import Tensor

if TYPE_CHECKING:
    from cgpt_convert.architectures.recognised_names import Recognised  # not needed for formats


class ModelRequest(NamedTuple):
    """A model to write. Configuration and tokenizer are read next to the checkpoint or from it."""

    checkpoint: Checkpoint
    tensors: Sequence[Tensor]  # tied ones under each of their names
    name: str = ""  # the output's last path component
    dtype: str = "keep"  # for targets that cast by their own rule; else the tensors are cast
    tokenizer: str | None = None  # a folder that takes precedence
    vocabulary: bool = True  # whether the tokenizer is written
    max_shard_nbytes: int | None = None


class ModelContent(NamedTuple):
    """The content of the output, before provenance metadata is added to the request."""

    request: Request  # the tensors under their new names
    lines: tuple[str, ...]  # information for the user
    recognised: Recognised | None
    # returns all files of the output, given the planned weight files
    finish: Callable[[list[FilePlan]], list[FilePlan]] = list


class ModelPlan(NamedTuple):
    """The files to write, and lines of information for the user."""

    plans: list[FilePlan]
    request: Request
    lines: tuple[str, ...]
    recognised: Recognised | None


class ModelTarget(NamedTuple):
    """A whole-model output. The options that it does not have are rejected."""

    name: str  # as `--to` takes it
    format: str  # of the weight files
    content: Callable[[ModelRequest], ModelContent]
    folder: bool = False  # whether the output is a folder, else one file
    # whether `content` takes the checkpoint as it is stored and casts the tensors by its own rule,
    # else the checkpoint with transformers' names and layout, and cast tensors
    as_stored: bool = False
    blocks: bool = False  # whether it stores block-quantized types
    shards: bool = False  # whether the weights can be split
    vocabulary: bool = False  # whether the tokenizer can be omitted


MODEL_TARGETS = {
    target.name: target
    for target in (
        ModelTarget(
            "gguf",
            "gguf",
            LazyReference("cgpt_convert.targets.llama_cpp.export:content"),
            as_stored=True,
            blocks=True,
            vocabulary=True,
        ),
        ModelTarget(
            "hf",
            "safetensors",
            LazyReference("cgpt_convert.targets.hf.hf_folder:content"),
            folder=True,
            shards=True,
        ),
    )
}


def select_model(
    target: ModelTarget, checkpoint: Checkpoint, wish: TensorSelection
) -> tuple[Checkpoint, SelectedTensors]:
    """Return the checkpoint as the target takes it, and the selected tensors.

    Raises Malformed if tensors of the model are lost.
    """
    if target.as_stored:
        return checkpoint, select_whole(undone(checkpoint), wish._replace(dtype="keep"))
    checkpoint = undone(checkpoint)
    return checkpoint, select_whole(checkpoint, wish)


def select_whole(checkpoint: Checkpoint, wish: TensorSelection) -> SelectedTensors:
    """Return the selected tensors of a whole model, tied ones under each of their names.

    Raises Malformed, naming them, if some are lost.
    """
    chosen = select(checkpoint, wish._replace(tied="copy"))
    if chosen.lost:
        raise Malformed(
            f"this output needs the whole model, but {len(chosen.lost):,} tensors cannot be "
            f"recovered: {', '.join(map(printable, chosen.lost))}",
            where=checkpoint.path,
            hint="skip them with --exclude if they are buffers, or use --to safetensors to write "
            "only the intact tensors",
        )
    return chosen


def plan_model(
    target: ModelTarget, model: ModelRequest, add_provenance: AddProvenance = unsigned
) -> ModelPlan:
    """Plan the files of a model. Raises Unsupported if the target's program could not use them."""
    content = target.content(model)
    request = add_provenance(content.request)
    plans = content.finish(registry.by_name(target.format).planned(request))
    return ModelPlan(plans, request, content.lines, content.recognised)

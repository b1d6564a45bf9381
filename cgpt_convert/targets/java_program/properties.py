"""model.properties, which the program demo-gpt-java requires next to raw storages.

The keys and the grammar are those of its `config/Settings.java`: `key = value` lines with exactly
one `=`, comments that begin with `#`, ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Context, Decimal
from typing import Any, NamedTuple

from cgpt_convert.architectures.hf_config_check import CONFIG, read_config
from cgpt_convert.architectures.hooks import hook
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.text import printable, quoted
from cgpt_convert.plan import FilePlan
from cgpt_convert.targets.java_program import raw_files
from cgpt_convert.targets.model_targets import select_whole
from cgpt_convert.targets.selection import TensorSelection
from cgpt_convert.targets.whole_model import (
    end_id,
    folder_of,
    heads,
    whole_model,
)
from cgpt_convert.tensors.content_digest import tensor_digest
from cgpt_convert.tensors.dtypes import FLOAT32
from cgpt_convert.tensors.tensor import Tensor

NAME = "model.properties"
FOLDER = "parameters"  # where the program looks for the files, next to the properties
_DIGITS = 32  # of the attention dividend, as its author writes it


class PropertiesFiles(NamedTuple):
    """The files to write, and lines of information for the user."""

    parameters: list[FilePlan]  # paths are relative to the folder FOLDER
    properties: FilePlan
    lines: tuple[str, ...]

    def model_folder(self) -> list[FilePlan]:
        """Return the files of a folder in the program's layout, the properties last."""
        return [*raw_files.moved(self.parameters, f"{FOLDER}/"), self.properties]


def plan(checkpoint: Checkpoint) -> PropertiesFiles:
    """Plan the raw storages with `mapping.json`, and the properties for the program.

    The configuration is the one next to the checkpoint, if any. Raises Unsupported, with the
    reason, for every model that the program would compute incorrectly.
    """
    path = checkpoint.path
    said = read_config(folder_of(path))
    tensors = {t.name: t for t in select_whole(checkpoint, TensorSelection()).tensors}
    recognised = whole_model(path, tensors.values(), said)
    if recognised is None:
        raise _refused(path, "the architecture of the tensors is unknown")
    program = hook(recognised.architecture, "java_program", path)
    config = {} if said is None else program.with_defaults(said)
    if recognised.linear:
        raise Unsupported(
            "the weights are stored as Linear weights (out, in); the raw-parameters program reads "
            "GPT-2's Conv1D layout",
            where=path,
            hint="run convert --to hf, which transposes them, then extract from that folder",
        )
    _check_types(recognised, tensors, path)
    refusal = program.refusal(recognised, config)
    if refusal:
        raise _refused(path, refusal)
    _check_head(recognised, tensors, path)
    raw = raw_files.plan(checkpoint, recognised, tensors)
    blocks = (
        *_settings(recognised, config, path),
        _layout(transposed=raw.transposed),
        _files(raw.files),
    )
    text = "\n".join("".join(setting_lines(block)) for block in blocks)
    lines = tuple(_notes(recognised, config, raw.copies))
    return PropertiesFiles(raw.plans, FilePlan(NAME, (text.encode("ascii"),)), lines)


def _check_types(recognised: Recognised, tensors: Mapping[str, Tensor], path: str) -> None:
    strange = [name for name in recognised.places if tensors[name].dtype != FLOAT32]
    if strange:
        some = ", ".join(f"{printable(n)} ({tensors[n].dtype.name})" for n in strange[:3])
        raise Unsupported(
            "the raw-parameters program supports float32 only; tensors with other dtypes "
            f"({len(strange):,}): {some}{' ...' if strange[3:] else ''}",
            where=path,
            hint="run convert --to safetensors --dtype float32, then extract from that file",
        )


def _check_head(recognised: Recognised, tensors: Mapping[str, Tensor], path: str) -> None:
    """Raise Unsupported if the head differs from the embedding; a copy is read to compare."""
    names = {place.rule.name: name for name, place in recognised.places.items()}
    for name, place in recognised.places.items():
        if place.rule.tied_to:
            head, twin = tensors[name], tensors[names[place.rule.tied_to]]
            if head.view != twin.view and tensor_digest(head) != tensor_digest(twin):
                raise _refused(
                    path,
                    f"{quoted(name)} differs from {quoted(twin.name)}; the program has only one",
                )


def _settings(
    recognised: Recognised, config: Mapping[str, Any], path: str
) -> tuple[dict[str, str], ...]:
    """Return the properties of the model in blocks, as in the program's own examples."""
    sizes, n_head = recognised.sizes, heads(recognised, path, config)
    end = end_id(recognised, config, None, "eos")
    if end is None:
        hint = f"put the model's {CONFIG}, with eos_token_id, next to the weights"
        raise Unsupported("the end-of-text token is unknown", where=path, hint=hint)
    scaled = config.get("scale_attn_weights", True)
    d_head = Decimal(sizes["n_embd"] // n_head if scaled else 1)
    return (
        {
            "name": _name(recognised),
            "source": recognised.identity.family if recognised.identity else "unknown",
        },
        {
            "tokenizer": "GPT-2",
            "tokenizer.config": "GPT-2",
            "token.count": str(sizes["vocab_size"]),
            "end.of.text.token": str(end),
            "max.length": str(sizes["n_positions"]),
        },
        {
            "position.embedding": "LEARNED",
            "pre.normalization": "true",  # otherwise the last norm is not applied
        },
        {
            "hidden.size": str(sizes["n_embd"]),
            "feedforward.size": str(sizes["n_inner"]),
            "decoder.count": str(sizes["n_layer"]),
            "attention.head.count": str(n_head),
            "attention.dividend": str(Context(prec=_DIGITS).sqrt(d_head)),
        },
        {f"attention.type.{number}": "global" for number in range(1, sizes["n_layer"] + 1)},
        {"epsilon": _epsilon(recognised, config, path)},
    )


def _name(recognised: Recognised) -> str:
    if recognised.identity:
        return recognised.identity.title
    if recognised.shape_of:
        return f"shape of {recognised.shape_of.title}"
    return f"{recognised.architecture.name} {recognised.sizes['n_embd']} wide"


def _layout(*, transposed: bool) -> dict[str, str]:
    return {
        "data.type": FLOAT32.name.upper(),
        "byte.order": "LITTLE_ENDIAN",  # the default is big-endian
        "weights.transposed": "true" if transposed else "false",
        "merged.qkv": "false" if transposed else "true",
    }


def _files(files: Mapping[str, str]) -> dict[str, str]:
    return {f"file.{key}": file for key, file in files.items()}


def setting_lines(block: Mapping[str, str]) -> Iterator[str]:
    """Yield the line of each setting; raise Unsupported if the program would read another one."""
    for key, value in block.items():
        line = f"{key} = {value}\n"
        if not line.isascii() or line.count("=") != 1:
            raise Unsupported(f"the line {line!r} cannot be expressed", where=NAME)
        yield line


def _epsilon(recognised: Recognised, config: Mapping[str, Any], path: str) -> str:
    """Return the epsilon as in the program's examples and Java's Float.parseFloat: 1e-5f."""
    usual = hook(recognised.architecture, "java_program").usual_epsilon(recognised)
    value = config.get("layer_norm_epsilon", usual)
    if not isinstance(value, float) or not 0 < value < 1:
        raise _refused(path, f"layer_norm_epsilon is {value!r}, not a number between 0 and 1")
    return re.sub("e-0", "e-", repr(value)) + "f"


def _notes(
    recognised: Recognised, config: Mapping[str, Any], copies: Mapping[str, Tensor]
) -> Iterator[str]:
    if copies:
        nbytes = sum(tensor.nbytes for tensor in copies.values())
        yield (
            f"{len(copies):,} files ({nbytes:,} bytes) contain second copies of tensors, in the "
            f"layout that the program needs: {next(iter(copies))} ..."
        )
    yield from hook(recognised.architecture, "java_program").notes(recognised, config)


def _refused(path: str, why: str) -> Unsupported:
    return Unsupported(
        f"{NAME} cannot describe the model: {why}",
        where=path,
        hint="run extract without --properties",
    )

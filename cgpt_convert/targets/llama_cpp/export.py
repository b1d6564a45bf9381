"""Plan the GGUF file that llama.cpp runs: names, layout, dtypes, header fields.

The tensors that stay float32 are chosen by llama.cpp's rule (conversion/base.py `prepare_tensors`),
so the tensors' bytes equal those of its own converter. It has no rule for the 4- and 5-bit types.
For those the output matrix is q8_0, as in llama.cpp's llama-quant.cpp where q6_k does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cgpt_convert.architectures.hf_config_check import check_config, read_config
from cgpt_convert.architectures.hooks import hook, with_hook
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.core.errors import BadRequest, Unsupported
from cgpt_convert.core.text import printable, quoted
from cgpt_convert.formats.gguf import writer
from cgpt_convert.plan import Field, Request
from cgpt_convert.targets.hf.model_card import Card, read_card
from cgpt_convert.targets.llama_cpp import gguf_metadata, restore_hf
from cgpt_convert.targets.model_targets import ModelContent, ModelRequest
from cgpt_convert.targets.tokenizer.bpe import Tokenizer, find, flag_lines, source_lines
from cgpt_convert.targets.whole_model import folder_of, layout_lines, whole_model
from cgpt_convert.tensors.content_digest import same_values
from cgpt_convert.tensors.dtypes import BLOCK_CASTS, BY_NAME, FLOAT32, DType
from cgpt_convert.tensors.shapes import in_blocks
from cgpt_convert.tensors.tensor import Tensor

_EMBEDDING, _HEAD, _POSITIONS = "token_embd.weight", "output.weight", "position_embd.weight"
_KEPT = ("float32", "float16", "bfloat16")  # dtypes that `keep` does not change


class ModelDescription(NamedTuple):
    """The data about a model except its tensors. `path` is used in messages and to detect muP."""

    path: str
    config: Mapping[str, Any] | None
    tokenizer: Tokenizer | None
    card: Card = Card()
    fields: tuple[Field, ...] = ()  # those of a GGUF file, which are kept
    same_vocabulary: bool = False  # including those of its tokenizer


def content(model: ModelRequest) -> ModelContent:
    """Return the content of the file for a model with the given uncast tensors.

    Configuration and tokenizer are read next to the checkpoint. A GGUF file's own fields are kept.
    Raises Unsupported if llama.cpp could not run the result, and BadRequest if a tokenizer is
    missing; both have a hint.
    """
    checkpoint = model.checkpoint
    path, folder = checkpoint.path, folder_of(checkpoint.path)
    inside = restore_hf.is_gguf(checkpoint)
    config = restore_hf.config(checkpoint) if inside else read_config(folder)
    if inside and config is None:
        name = checkpoint.metadata.get(gguf_metadata.ARCHITECTURE, "")
        raise Unsupported(
            f"GGUF files of the architecture {quoted(name)} cannot be rewritten as GGUF",
            where=path,
            hint=f"supported: {', '.join(with_hook('gguf'))}; use --to safetensors to write the "
            "tensors",
        )
    recognition = recognised(path, model.tensors, config)
    if config is not None and not inside:
        config = hook(recognition.architecture, "gguf").with_defaults(config)
    tokenizer, given = None, model.tokenizer
    same = inside and given is None and model.vocabulary
    if model.vocabulary and not same:
        tokenizer = _tokenizer(path, folder, given, recognition, config or {})
    described = ModelDescription(path, config, tokenizer)
    if inside:
        described = described._replace(fields=writer.fields(checkpoint), same_vocabulary=same)
    else:
        described = described._replace(card=read_card(folder))
    made, lines = request(model.name, recognition, model.tensors, model.dtype, described)
    return ModelContent(made, lines, recognition)


def _tokenizer(
    path: str, folder: str, given: str | None, recognised: Recognised, config: Mapping[str, Any]
) -> Tokenizer:
    """Return the tokenizer to write. Raises BadRequest if there is none."""
    tokenizer = find(folder, given, recognised.sizes["vocab_size"])
    if tokenizer is None:
        raise BadRequest(
            f"there is no tokenizer for the model's {recognised.sizes['vocab_size']:,} tokens next "
            "to the weights",
            where=path,
            hint="pass a folder with vocab.json and merges.txt (--tokenizer DIR), or --no-vocab",
        )
    tokenizer = tokenizer.with_config(config)
    gguf_metadata.check_tokenizer(tokenizer, path)
    return tokenizer


def recognised(
    path: str, tensors: Sequence[Tensor], config: Mapping[str, Any] | None
) -> Recognised:
    """Return the tensors' roles; Unsupported unless complete and known to llama.cpp."""
    recognised = whole_model(path, tensors, config)
    if recognised is None:
        raise Unsupported(
            "GGUF output is not supported for these tensors: their architecture is unknown",
            where=path,
            hint=f"supported: {', '.join(with_hook('gguf'))}; use --to safetensors, which writes "
            "any tensors",
        )
    hook(recognised.architecture, "gguf", path)
    return recognised


def request(
    name: str,
    recognised: Recognised,
    tensors: Sequence[Tensor],
    dtype: str,
    source: ModelDescription,
) -> tuple[Request, tuple[str, ...]]:
    """Return the content of the file called `name`, and lines of information.

    `dtype` is one of `dtypes.WISHES`. Without a tokenizer, llama.cpp accepts token IDs only. Raises
    Unsupported, as `content` does, for settings that llama.cpp does not support.
    """
    config = source.config or {}
    lines = [
        *_stripped(recognised),
        *check_config(recognised, config),
        *source_lines(source.tokenizer),
    ]
    renamed, left_out = _renamed(recognised, tensors)
    lines += [f"{name} equals the token embedding and is not written" for name in left_out]
    head = _HEAD if any(tensor.name == _HEAD for tensor in renamed) else _EMBEDDING
    written = []
    for tensor in renamed:
        target = _target(tensor, dtype, head)
        if not in_blocks(target, tensor.shape):
            lines.append(
                f"{tensor.name} is written as float16: its rows of {tensor.shape[-1]:,} elements "
                f"cannot be divided into {target.name} blocks"
            )
            target = BY_NAME["float16"]
        written.append(tensor.cast(target))
    sizes = gguf_metadata.hyperparameters(recognised, config, source.path)
    storage = gguf_metadata.storage(written)
    vocabulary = _vocabulary(recognised, source)
    if source.tokenizer is not None:
        lines += flag_lines(source.tokenizer)
    if source.fields:
        fields = gguf_metadata.kept(source.fields, sizes, storage, vocabulary)
        return Request(name, tuple(written), fields=fields), tuple(map(printable, lines))
    fields = (
        *gguf_metadata.general(recognised, config, source.card, written),
        *sizes,
        *storage,
        *vocabulary,
        *gguf_metadata.own(recognised, config),
    )
    lines += hook(recognised.architecture, "gguf").notes(recognised, config)
    return Request(name, tuple(written), fields=fields), tuple(map(printable, lines))


def _vocabulary(recognised: Recognised, source: ModelDescription) -> list[Field]:
    """Return the fields of the tokenizer; none if those of a GGUF file are kept."""
    if source.same_vocabulary:
        return []
    if source.tokenizer is None:
        return gguf_metadata.no_vocabulary(recognised)
    return gguf_metadata.vocabulary(source.tokenizer, recognised.sizes["vocab_size"])


def _stripped(recognised: Recognised) -> list[str]:
    """Return the line for a removed wrapper; the Linear layout is llama.cpp's and needs no line."""
    return layout_lines(recognised._replace(linear=False))


def _target(tensor: Tensor, dtype: str, head: str) -> DType:
    """Return the dtype to write for a tensor with llama.cpp's name; `head` is the output matrix."""
    if len(tensor.shape) < 2 or tensor.name.endswith("_norm.weight"):  # noqa: PLR2004 a matrix
        return FLOAT32
    if tensor.name == _POSITIONS or not tensor.name.endswith(".weight"):
        return FLOAT32
    if dtype == "keep" and tensor.stored.block > 1:
        return tensor.stored
    if dtype == "keep":
        return tensor.dtype if tensor.dtype.name in _KEPT else FLOAT32
    if dtype in BLOCK_CASTS and tensor.name == head:
        return BY_NAME["q8_0"]
    return BY_NAME[dtype]


def _renamed(recognised: Recognised, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[str]]:
    """Return tensors with llama.cpp's names and layout, and the names of omitted tied ones.

    Conv1D weights are (in, out) here and (out, in) in llama.cpp, as in Linear layers.
    """
    names = recognised.names("gguf")
    by_rule = {
        recognised.places[t.name].rule.name: t for t in tensors if t.name in recognised.places
    }
    renamed, left_out = [], []
    for tensor in tensors:
        if tensor.name not in names:
            continue  # a buffer
        rule = recognised.places[tensor.name].rule
        if rule.tied_to and same_values(tensor, by_rule[rule.tied_to]):
            left_out.append(tensor.name)
            continue
        turned = tensor.transposed() if rule.conv1d and not recognised.linear else tensor
        renamed.append(turned.renamed(names[tensor.name]))
    return renamed, left_out

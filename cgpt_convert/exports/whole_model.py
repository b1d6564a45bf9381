"""What outputs need that are a model and not just tensors: all of it, its heads, its end token."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from cgpt_convert.errors import Malformed, Unsupported
from cgpt_convert.exports.tokenizer import GPT2_TOKENS, Tokenizer
from cgpt_convert.inert import printable
from cgpt_convert.mapping.config import CONFIG, mup_refusal
from cgpt_convert.mapping.recognise import recognise
from cgpt_convert.mapping.recognised import Recognised
from cgpt_convert.select import Selection
from cgpt_convert.tensor import Tensor

_ONLY_WEIGHTS = "--to safetensors writes the weights alone"


def folder_of(path: str) -> str:
    """The folder where the configuration and the tokenizer of the weights at `path` lie."""
    return path if os.path.isdir(path) else os.path.dirname(path) or "."


def whole_model(
    path: str, tensors: Iterable[Tensor], config: Mapping[str, Any] | None
) -> Recognised | None:
    """What the tensors of the file at `path` are; None if of no known architecture.

    Raises Unsupported, naming every misfit, unless they are a model of it, neither more nor less,
    and for those whose logits the architecture does not give (muP).
    """
    found = recognise({tensor.name: tensor for tensor in tensors}, config)
    if found is None:
        return None
    if found.misfits:
        raise Unsupported(
            f"{len(found.misfits)} differences from {found.architecture.name}: "
            f"{'; '.join(found.misfits)}",
            where=path,
            hint=f"leave tensors out with --exclude; or {_ONLY_WEIGHTS}",
        )
    refusal = mup_refusal(found.architecture, config or {}, path)
    if refusal:
        raise Unsupported(refusal, where=path, hint=_ONLY_WEIGHTS)
    return found._replace(refusal="")


def refuse_incomplete(chosen: Selection, path: str) -> None:
    """Raise Malformed, naming them, if tensors of what is to be a whole model are lost."""
    if chosen.lost:
        raise Malformed(
            f"a whole model is wanted, and {len(chosen.lost):,} of its tensors are lost: "
            f"{', '.join(map(printable, chosen.lost))}",
            where=path,
            hint=f"leave them out with --exclude if they are buffers; or {_ONLY_WEIGHTS}",
        )


def heads(found: Recognised, path: str) -> int:
    """The number of attention heads; Unsupported, saying what to do, where nothing tells it."""
    if found.n_head is None:
        raise Unsupported(
            "the number of attention heads is not known: tensors do not tell it, and the model is "
            "none that is known by name",
            where=path,
            hint=f"put the model's {CONFIG}, with n_head, beside the weights",
        )
    return found.n_head


def end_id(
    config: Mapping[str, Any], tokenizer: Tokenizer | None, key: str, vocab_size: int
) -> int | None:
    """The id of `key`, "bos" or "eos": what config.json says, else the tokenizer, else GPT-2's."""
    said = config.get(f"{key}_token_id")
    if type(said) is int:
        return said
    if tokenizer is not None:
        return tokenizer.bos if key == "bos" else tokenizer.eos
    return GPT2_TOKENS - 1 if vocab_size == GPT2_TOKENS else None

"""Requirements of whole-model outputs: complete tensors, number of heads, end token."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from cgpt_convert.architectures.hf_config_check import CONFIG, count, head_lines, mup_refusal
from cgpt_convert.architectures.hooks import has_hook, hook
from cgpt_convert.architectures.recognise import recognise
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.architectures.schema import LAYERS, Architecture, architectures
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.text import printable, quoted
from cgpt_convert.targets.tokenizer.bpe import Tokenizer
from cgpt_convert.tensors.tensor import Tensor

_SHOWN = 5
ONLY_WEIGHTS = "use --to safetensors to write only the weights"


def folder_of(path: str) -> str:
    """Return the folder that contains the configuration and tokenizer of the weights at `path`."""
    return path if os.path.isdir(path) else os.path.dirname(path) or "."


def whole_model(
    path: str, tensors: Iterable[Tensor], config: Mapping[str, Any] | None
) -> Recognised | None:
    """Return the roles of the tensors of the file at `path`; None if the architecture is unknown.

    Raises Unsupported, naming every mismatch, unless they are exactly the tensors of such a model,
    and for weights whose logits the architecture does not compute (muP).
    """
    named = {tensor.name: tensor for tensor in tensors}
    recognised = recognise(named, config)
    if recognised is None:
        refuse_misnamed(path, named, config or {})
        return None
    if recognised.misfits and _lacks_biases(recognised):
        raise Unsupported(
            f"the model has no biases ({len(recognised.misfits):,} are missing), like nanoGPT "
            f"models trained with bias=False; {recognised.architecture.name} requires them",
            where=path,
            hint=ONLY_WEIGHTS,
        )
    if recognised.misfits:
        differing = len(recognised.misfits)
        raise Unsupported(
            f"{_other_head(recognised.architecture, config or {})}the tensors have {differing:,} "
            f"{'difference' if differing == 1 else 'differences'} from "
            f"{recognised.architecture.name}: {'; '.join(recognised.misfits)}",
            where=path,
            hint=ONLY_WEIGHTS,
        )
    layers = count(config or {}, recognised.architecture.config_keys.get(LAYERS, ()))
    have = recognised.sizes[LAYERS]
    if layers is not None and layers > have:
        raise Unsupported(
            f"{CONFIG} has {layers:,} layers, but the file has {have:,}: layers are missing, or "
            f"{CONFIG} belongs to another model",
            where=path,
            hint=f"fix {CONFIG} if the file is complete, or {ONLY_WEIGHTS}",
        )
    head = next(iter(recognised.architecture.ties), "")
    if head and recognised.head == "absent" and (config or {}).get("tie_word_embeddings") is False:
        raise Unsupported(
            f"{CONFIG} has tie_word_embeddings false (the head is not the token embedding), but "
            f"the file has no {head}",
            where=path,
            hint=f"set tie_word_embeddings to true in {CONFIG} if the head is the embedding, or "
            f"{ONLY_WEIGHTS}",
        )
    refusal = mup_refusal(recognised.architecture, config or {}, path)
    if refusal:
        raise Unsupported(refusal, where=path, hint=ONLY_WEIGHTS)
    return recognised._replace(refusal="")


def _other_head(architecture: Architecture, config: Mapping[str, Any]) -> str:
    """Return the start of a message if config.json names a class with another head, else ""."""
    classes = config.get("architectures")
    named = classes[0] if isinstance(classes, list) and classes else None
    written = hook(architecture, "hf").CLASS if has_hook(architecture, "hf") else None
    base = named == f"{architecture.class_prefix}Model"  # has no head
    if not isinstance(named, str) or written is None or base or named == written:
        return ""
    return f"{CONFIG} names the class {printable(named)}, but only {written} is supported; "


def _lacks_biases(recognised: Recognised) -> bool:
    """Return whether missing biases are the only difference from the architecture."""
    biases = any(place.rule.name.endswith(".bias") for place in recognised.places.values())
    return not biases and all(".bias: missing" in line for line in recognised.misfits)


def refuse_misnamed(path: str, names: Iterable[str], config: Mapping[str, Any]) -> None:
    """Raise Unsupported, showing the names' prefixes, if config.json names a known architecture."""
    known = _configured_architecture(config)
    if known is not None:
        firsts = list(dict.fromkeys(name.partition(".")[0] for name in names))
        shown = ", ".join(printable(first) for first in firsts[:_SHOWN])
        more = f" and {len(firsts) - _SHOWN:,} more" if firsts[_SHOWN:] else ""
        raise Unsupported(
            f"{CONFIG} describes a {known.name} model, but the tensors are not those of one; their "
            f"names begin with {shown}{more}",
            where=path,
            hint="use convert with --match 'NAME.*' to select the tensors of one model, --rename "
            "to give them its names, or --to safetensors to write all tensors as they are",
        )


def _configured_architecture(config: Mapping[str, Any]) -> Architecture | None:
    """Return the known architecture that config.json names, or None."""
    kind, classes = config.get("model_type"), config.get("architectures")
    for architecture in architectures().values():
        if kind in architecture.model_types:
            return architecture
        named = classes if kind is None and isinstance(classes, list) else []
        begin = architecture.class_prefix
        if begin and any(isinstance(each, str) and each.startswith(begin) for each in named):
            return architecture
    return None


def layout_lines(recognised: Recognised) -> list[str]:
    """Return a line for each change to the file's names and layout."""
    lines = []
    if recognised.wrapper:
        lines.append(f"removed the wrapper {quoted(recognised.wrapper)} from the names")
    if recognised.linear:
        count = sum(place.rule.conv1d for place in recognised.places.values())
        lines.append(f"transposed {count:,} Linear weights from (out, in) to (in, out)")
    return lines


def heads(recognised: Recognised, path: str, config: Mapping[str, Any]) -> int:
    """Return the number of attention heads.

    Raises Unsupported, with a hint, if it is unknown or config.json is wrong.
    """
    wrong = list(head_lines(recognised, config))
    if recognised.n_head is None and wrong:
        raise Unsupported(f"{CONFIG} has {wrong[0]}", where=path, hint=f"fix {CONFIG}")
    if recognised.n_head is None:
        raise Unsupported(
            "the number of attention heads is unknown: it cannot be inferred from the tensors, and "
            "no known model has these shapes",
            where=path,
            hint=f"put the model's {CONFIG}, with n_head, next to the weights",
        )
    return recognised.n_head


def end_id(
    recognised: Recognised, config: Mapping[str, Any], tokenizer: Tokenizer | None, key: str
) -> int | None:
    """Return the ID for `key`, "bos" or "eos", from config.json, the tokenizer or the architecture.

    The architecture's ID applies to models with its usual number of tokens.
    """
    said = config.get(f"{key}_token_id")
    if type(said) is int:
        return said
    if tokenizer is not None:
        return tokenizer.bos if key == "bos" else tokenizer.eos
    usual = recognised.architecture.vocabulary
    return usual.end if usual is not None and usual.size == recognised.sizes["vocab_size"] else None

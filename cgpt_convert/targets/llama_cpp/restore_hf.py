"""Restore transformers' names, layout and configuration from a GGUF file of llama.cpp.

This is the inverse of `export`, with the same table.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from cgpt_convert.architectures.schema import Architecture, TensorPosition, architectures, template
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.gguf import writer
from cgpt_convert.plan import Field
from cgpt_convert.targets.hf.model_card import Card
from cgpt_convert.targets.llama_cpp import gguf_metadata
from cgpt_convert.targets.tokenizer.bpe import Tokenizer
from cgpt_convert.targets.tokenizer.files import ChatTemplate
from cgpt_convert.tensors.dtypes import FLOAT32

# pre-tokenizers that equal GPT-2's in llama.cpp (src/llama-vocab.cpp `impl::load`)
_GPT2_PRE = ("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "mpt", "olmo")
_SIZE_LABEL = "general.size_label"
_VERSION_LINE = "#version: 0.2"  # the first line of a merges.txt


class EmbeddedFiles(NamedTuple):
    """The data in a GGUF file that other formats store in files next to the weights."""

    config: dict[str, Any] | None  # as config.json, as far as the fields allow
    tokenizer: Tokenizer | None


def is_gguf(checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint is a GGUF file, with any tensor names."""
    return checkpoint.format == "gguf"


def inside(checkpoint: Checkpoint) -> EmbeddedFiles | None:
    """Return the configuration and tokenizer in a GGUF file; None for other formats."""
    return EmbeddedFiles(config(checkpoint), tokenizer(checkpoint)) if is_gguf(checkpoint) else None


def undo(checkpoint: Checkpoint) -> Checkpoint:
    """Return a GGUF checkpoint with transformers' names, Conv1D weights (in, out), no blocks.

    Names and layout are unchanged for an unknown architecture and for tensors that the architecture
    does not have. No data is read.
    """
    architecture = architecture_of(checkpoint)
    places = _places(architecture) if architecture else {}

    def place_of(name: str) -> TensorPosition | None:
        pattern, layer = template(name)
        place = places.get(pattern)
        return TensorPosition(place.rule, layer) if place else None

    def renamed(name: str) -> str:
        place = place_of(name)
        return place.name(architecture.canonical) if architecture and place else name

    tensors = {}
    for name, tensor in checkpoint.items():
        place = place_of(name)
        wide = tensor.cast(FLOAT32) if tensor.stored.block > 1 else tensor
        turned = wide.transposed() if place and place.rule.conv1d else wide
        tensors[renamed(name)] = turned.renamed(renamed(name))
    done = copy.copy(checkpoint)
    done.tensors = tensors
    done.lost = {renamed(name): why for name, why in checkpoint.lost.items()}
    return done


def config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return a config.json from the fields; None if the architecture is unknown."""
    architecture = architecture_of(checkpoint)
    if architecture is None:
        return None
    known: dict[str, Any] = {"model_type": architecture.model_types[0]}
    for size, key in architecture.gguf_keys.items():
        text = checkpoint.metadata.get(f"{architecture.gguf_name}.{key}")
        value = _number(text) if text is not None else None
        if value is not None:
            known[architecture.config_keys.get(size, (size,))[0]] = value
    values = {
        "activation_function": checkpoint.metadata.get(gguf_metadata.ACTIVATION),
        "_name_or_path": card(checkpoint).name,
    }
    return known | {key: value for key, value in values.items() if value}


def card(checkpoint: Checkpoint) -> Card:
    """Return the name and licence in the file, as a model card has them."""
    said = checkpoint.metadata
    name = said.get(gguf_metadata.NAME, "")
    made = f"{said.get(gguf_metadata.ARCHITECTURE)} {said.get(_SIZE_LABEL)}"
    title = "" if name == made or name.startswith(gguf_metadata.SHAPE_OF) else name
    return Card(title, said.get(gguf_metadata.LICENSE, ""))


def tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """Return the tokenizer in the file without trailing unused tokens; None if not GPT-2's kind.

    Its `files` are the equivalent vocab.json and merges.txt.
    """
    said = checkpoint.metadata
    if said.get(gguf_metadata.MODEL) != "gpt2" or said.get(gguf_metadata.PRE) not in _GPT2_PRE:
        return None
    fields = {field.key: field for field in writer.fields(checkpoint)}
    tokens, merges = (
        _array(fields.get(key), "string") for key in (gguf_metadata.TOKENS, gguf_metadata.MERGES)
    )
    types = _array(fields.get(gguf_metadata.TYPES), "int32")
    if not tokens or len(types) != len(tokens):
        return None
    last = max((i for i, kind in enumerate(types) if kind != gguf_metadata.UNUSED), default=-1)
    tokens = tokens[: last + 1]
    special = frozenset(i for i, kind in enumerate(types) if kind == gguf_metadata.CONTROL)
    added = special | {i for i, kind in enumerate(types) if kind == gguf_metadata.USER_DEFINED}
    vocabulary = json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False)
    files = {
        "vocab.json": vocabulary.encode(),
        "merges.txt": "\n".join((_VERSION_LINE, *merges, "")).encode(),
    }
    read = {role: _token(fields.get(key), len(tokens)) for role, key in gguf_metadata.ROLES.items()}
    roles = {role: number for role, number in read.items() if number is not None}
    bos, eos = roles.pop("bos", None), roles.pop("eos", None)
    stated = {name: _flag(fields.get(key)) for name, key in gguf_metadata.ADD.items()}
    adds = {name: value for name, value in stated.items() if value is not None}
    before = (bos,) if adds.get("bos") and bos is not None else ()
    after = (eos,) if adds.get("eos") and eos is not None else ()
    if after and "eot" in roles:  # see `llama_fields.vocabulary`
        eos = roles.pop("eot")
    made = Tokenizer(tokens, merges, bos, eos, special, files, frozenset(added), roles)
    return made._replace(before=before, after=after, adds=adds, template=_template(fields))


def _flag(field: Field | None) -> bool | None:
    return field.value if field is not None and isinstance(field.value, bool) else None


def _template(fields: Mapping[str, Field]) -> ChatTemplate:
    """Return the chat template, or all of them by name with the unnamed one as `default`."""
    main = fields.get(gguf_metadata.TEMPLATE)
    default = main.value if main is not None and isinstance(main.value, str) else None
    named = []
    for name in _array(fields.get(gguf_metadata.TEMPLATES), "string"):
        field = fields.get(f"{gguf_metadata.TEMPLATE}.{name}")
        if field is not None and isinstance(field.value, str):
            named.append((name, field.value))
    if not named:
        return default
    return (*named, *([("default", default)] if default is not None else ()))


def architecture_of(checkpoint: Checkpoint) -> Architecture | None:
    """Return the architecture that the file names; None if it is not known."""
    name = checkpoint.metadata.get(gguf_metadata.ARCHITECTURE)
    known = architectures().values()
    return next((each for each in known if each.gguf_name and each.gguf_name == name), None)


def _places(architecture: Architecture) -> dict[str, TensorPosition]:
    """Return llama.cpp's name, with {i} for the layer -> the architecture's tensor."""
    rules = architecture.rules.values()
    return {
        rule.names["gguf"]: TensorPosition(rule, None) for rule in rules if "gguf" in rule.names
    }


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


def _array(field: Field | None, kind: str) -> tuple[Any, ...]:
    if field is None or field.type != kind or not isinstance(field.value, tuple):
        return ()
    return field.value


def _token(field: Field | None, most: int) -> int | None:
    value = field.value if field else None
    return value if type(value) is int and 0 <= value < most else None

"""The key-value pairs that llama.cpp requires in the GGUF file of a model.

Keys, types and order are those of llama.cpp's converter (conversion/base.py, conversion/gpt2.py);
ggml/docs/gguf.md documents them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cgpt_convert.architectures.hooks import hook
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.text import printable
from cgpt_convert.plan import Field
from cgpt_convert.targets.hf.model_card import Card
from cgpt_convert.targets.tokenizer.bpe import Tokenizer
from cgpt_convert.targets.tokenizer.files import ChatTemplate
from cgpt_convert.targets.whole_model import heads
from cgpt_convert.tensors.tensor import Tensor

ARCHITECTURE, NAME, LICENSE = "general.architecture", "general.name", "general.license"
# our own key: llama.cpp always computes the tanh GELU for GPT-2 and has no key for it
ACTIVATION = "cgpt_convert.activation_function"
SHAPE_OF = "shape of "  # prefix of the name of an unnamed model
TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
TYPES = "tokenizer.ggml.token_type"
MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
# as gguf-py spells it
_ROLE_NAMES = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # codespell:ignore
# in the order in which gguf-py's SpecialVocab writes them
ROLES = {
    role: f"tokenizer.ggml.{_ROLE_NAMES.get(role, role)}_token_id"
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "eot")
}
ADD = {name: f"tokenizer.ggml.add_{name}_token" for name in ("bos", "eos", "sep")}
TEMPLATE, TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf-py `TokenType`

_OWN, _TOKENIZER = "cgpt_convert.", "tokenizer."  # prefixes of keys
_ALIGNMENT = "general.alignment"  # not written: the writer uses the default
_ALL_FLOAT32 = 0  # gguf-py/gguf/constants.py `LlamaFileType`
_QUANTIZATION_VERSION = 2  # ggml.h GGML_QNT_VERSION


def general(
    recognised: Recognised, config: Mapping[str, Any], card: Card, tensors: Sequence[Tensor]
) -> list[Field]:
    """Return general fields about the model, which do not depend on file locations.

    Name and licence come from the model card or config.json; shapes determine neither.
    """
    size = size_label(sum(tensor.numel for tensor in tensors))
    given = config.get("_name_or_path")
    base = given.rstrip("/").rpartition("/")[2] if isinstance(given, str) else ""
    shaped = f"{SHAPE_OF}{recognised.shape_of.title}" if recognised.shape_of else ""
    name = card.name or printable(base) or shaped or f"{recognised.architecture.name} {size}"
    fields = [
        Field(ARCHITECTURE, "string", recognised.architecture.gguf_name),
        Field("general.type", "string", "model"),
        Field(NAME, "string", name),
        Field("general.size_label", "string", size),
    ]
    if card.license:
        fields.append(Field(LICENSE, "string", card.license))
    return fields


def hyperparameters(recognised: Recognised, config: Mapping[str, Any], path: str) -> list[Field]:
    """Return the sizes, the number of heads and the epsilon of the layer norms.

    Raises Unsupported for an unknown number of heads, an invalid epsilon, and settings that
    llama.cpp's graph of the architecture does not support.
    """
    gguf = hook(recognised.architecture, "gguf", path)
    gguf.check_settings(config, path)
    values: dict[str, int | float] = {
        **recognised.sizes,
        "n_head": heads(recognised, path, config),
        "layer_norm_epsilon": gguf.epsilon(recognised, config, path),
    }
    return [
        Field(
            f"{recognised.architecture.gguf_name}.{key}",
            "float32" if isinstance(values[size], float) else "uint32",
            values[size],
        )
        for size, key in recognised.architecture.gguf_keys.items()
    ]


def own(recognised: Recognised, config: Mapping[str, Any]) -> list[Field]:
    """Return fields that llama.cpp ignores and this program needs to run the model."""
    activation = hook(recognised.architecture, "gguf").activation(recognised, config)
    return [Field(ACTIVATION, "string", activation)]


def storage(tensors: Sequence[Tensor]) -> list[Field]:
    """Return the fields for the dtype of most weights and the quantization version."""
    nbytes: Counter[int] = Counter()
    for tensor in tensors:
        if tensor.dtype.file_type is not None and len(tensor.shape) > 1:
            nbytes[tensor.dtype.file_type] += tensor.nbytes
    most = max(sorted(nbytes), key=nbytes.__getitem__, default=_ALL_FLOAT32)
    return [
        Field("general.file_type", "uint32", most),
        Field("general.quantization_version", "uint32", _QUANTIZATION_VERSION),
    ]


def kept(
    old: Sequence[Field],
    sizes: Sequence[Field],
    storage: Sequence[Field],
    vocabulary: Sequence[Field],
) -> tuple[Field, ...]:
    """Return the fields of a GGUF file for writing it again with other dtypes.

    `storage` replaces the old fields of these keys, `vocabulary`, unless it is empty, all those of
    the tokenizer; `sizes` are added where they are absent. Provenance metadata is dropped.
    """
    new = {field.key: field for field in storage}
    fields = []
    for field in old:
        own = field.key.startswith(_OWN) and field.key != ACTIVATION
        replaced = vocabulary and (
            field.key.startswith(_TOKENIZER) or field.key in _keys(vocabulary)
        )
        if not (own or replaced or field.key == _ALIGNMENT):
            fields.append(new.pop(field.key, field))
    there = _keys(fields)
    fields += [field for field in sizes if field.key not in there]
    return (*fields, *new.values(), *vocabulary)


def _keys(fields: Iterable[Field]) -> set[str]:
    return {field.key for field in fields}


def vocabulary(tokenizer: Tokenizer, vocab_size: int) -> list[Field]:
    """Return the tokenizer's fields, padded with unused tokens to the model's vocabulary size."""
    have = len(tokenizer.tokens)
    pads = tuple(f"[PAD{number}]" for number in range(have, vocab_size))
    types = [NORMAL] * have + [UNUSED] * len(pads)
    for number in tokenizer.added | tokenizer.special:
        types[number] = CONTROL if number in tokenizer.special else USER_DEFINED
    fields: list[Field] = [
        Field(MODEL, "string", "gpt2"),
        Field(PRE, "string", "gpt-2"),
        Field(TOKENS, "string", tokenizer.tokens + pads),
        Field(TYPES, "int32", tuple(types)),
        Field(MERGES, "string", tokenizer.merges),
    ]
    roles = {"bos": tokenizer.bos, "eos": tokenizer.eos, **tokenizer.roles}
    if tokenizer.after and tokenizer.after[0] != tokenizer.eos:
        # llama.cpp adds the end token after a text, so the other one becomes its end of turn
        roles |= {"eos": tokenizer.after[0], "eot": tokenizer.eos}
    ids = ((key, roles.get(role)) for role, key in ROLES.items())
    fields += [Field(key, "uint32", number) for key, number in ids if number is not None]
    flags = {**tokenizer.adds, **tokenizer.stated}
    fields += [Field(key, "bool", flags[name]) for name, key in ADD.items() if name in flags]
    return [*fields, *_chat_template(tokenizer.template)]


def _chat_template(template: ChatTemplate) -> Iterator[Field]:
    """Yield the fields of a chat template, as gguf-py's `add_chat_template` writes them."""
    if isinstance(template, str):
        yield Field(TEMPLATE, "string", template)
        return
    named = {re.sub("[^a-zA-Z0-9]", "_", name): text for name, text in template or ()}
    default = named.pop("default", None)
    for name, text in named.items():
        yield Field(f"{TEMPLATE}.{name}", "string", text)
    if named:
        yield Field(TEMPLATES, "string", tuple(named))
    if default is not None:
        yield Field(TEMPLATE, "string", default)


def check_tokenizer(tokenizer: Tokenizer, path: str) -> None:
    """Raise Unsupported, with every reason, if llama.cpp would tokenize a text differently."""
    problems = list(tokenizer.problems)
    before, after = tokenizer.before, tokenizer.after
    if len(before) > 1 or len(after) > 1:
        problems.append(f"it adds {len(before)} tokens before a text and {len(after)} after it")
    elif before and before[0] != tokenizer.bos:
        problems.append(
            f"it adds {tokenizer.tokens[before[0]]!r} before a text, which is not its bos_token"
        )
    if problems:
        raise Unsupported(
            f"llama.cpp does not support the model's tokenizer: {printable('; '.join(problems))}",
            where=path,
            hint="use --no-vocab to write the GGUF without a tokenizer, or --to hf, which keeps it",
        )


def no_vocabulary(recognised: Recognised) -> list[Field]:
    """Return the fields with which llama.cpp evaluates token IDs without a vocabulary."""
    return [
        Field(
            f"{recognised.architecture.gguf_name}.vocab_size",
            "uint32",
            recognised.sizes["vocab_size"],
        ),
        Field(MODEL, "string", "none"),
    ]


def size_label(parameters: int) -> str:
    """Return the number of parameters, rounded as in gguf-py's `size_label`: 111M, 1.3B."""
    scales = {"T": 1e-12, "B": 1e-9, "M": 1e-6, "K": 1e-3}
    suffix = next((s for s, scale in scales.items() if parameters * scale > 1), "K")
    scaled = parameters * scales[suffix]
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{suffix}"

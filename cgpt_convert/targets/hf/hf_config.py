"""Correct or create config.json and generation_config.json of a transformers folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cgpt_convert.architectures.hf_config_check import CONFIG, check_config
from cgpt_convert.architectures.hooks import hook
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.text import printable
from cgpt_convert.pickles.nodes import text
from cgpt_convert.targets.tokenizer.bpe import Tokenizer
from cgpt_convert.targets.whole_model import ONLY_WEIGHTS, end_id
from cgpt_convert.tensors.shapes import dims
from cgpt_convert.tensors.tensor import Tensor

_ABSENT = object()
_QUANTIZED = ("quantization_config", "compression_config")


def make(
    recognised: Recognised, n_head: int, tokenizer: Tokenizer | None, said: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Return the configuration of a model without config.json, and a line about its origin.

    `said` is the configuration in a GGUF file. Other values are those of the known model of these
    shapes; without one, the tensors' sizes and transformers' defaults.
    """
    model, hf = recognised.shape_of, hook(recognised.architecture, "hf")
    assumed = hf.assumed(recognised)
    activation = assumed["activation_function"]
    line = f"created {CONFIG}; assumed activation_function {activation!r}, as in llama.cpp"
    if model:
        line = (
            f"created {CONFIG}; assumed n_head {n_head} and activation_function {activation!r}, "
            f"since the tensors have the shapes of {model.title}"
        )
    made = {
        "architectures": [hf.CLASS],
        "bos_token_id": end_id(recognised, {}, tokenizer, "bos"),
        "eos_token_id": end_id(recognised, {}, tokenizer, "eos"),
        "model_type": recognised.architecture.model_types[0],
        **assumed,
        **recognised.sizes,
        "n_head": n_head,
        "tie_word_embeddings": True,
        **said,
    }
    if "activation_function" in said:
        line = f"created {CONFIG} from the fields of the GGUF file"
    return made, line


def mend(
    recognised: Recognised, config: Mapping[str, Any], *, tied: bool, dtype: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration corrected to match the tensors, and a line for each change.

    `dtype` is the dtype of the written weights. Contradictions to the known model of these shapes
    are kept, since they may be right, and have a line as well.
    """
    architecture = recognised.architecture
    hf = hook(architecture, "hf")
    wanted: dict[str, Any] = {
        "model_type": architecture.model_types[0],
        "architectures": [hf.CLASS],
        **hf.required(recognised.sizes),
    }
    # the weights are not quantized: with such a key a loader would quantize or unpack them
    quantized = [key for key in _QUANTIZED if key in config]
    mended = {key: value for key, value in config.items() if key not in quantized}
    for size, keys in architecture.config_keys.items():
        value = recognised.n_head if size == "n_head" else recognised.sizes[size]
        # transformers reads the first key and ignores the others
        present = [key for key in keys[1:] if config.get(key) is not None]
        wanted |= dict.fromkeys([keys[0], *present], value)
    default = architecture.config_defaults
    for size, dim in default.items():  # an absent key stays absent if its default is right
        keys = architecture.config_keys[size]
        means = dim.factor * recognised.sizes[dim.symbol]
        if means == recognised.sizes[size] and all(config.get(key) is None for key in keys):
            wanted.pop(keys[0])
    wanted |= dict.fromkeys(_dtype_keys(config), dtype)
    if config.get("tie_word_embeddings", True) is not tied:
        wanted["tie_word_embeddings"] = tied
    lines = [f"{CONFIG}: removed {key}, since the weights are not quantized" for key in quantized]
    for key, value in wanted.items():
        was = config.get(key, _ABSENT)
        if was != value or type(was) is not type(value):
            before = "" if was is _ABSENT else f", was {text(was, 60)}"
            lines.append(f"{CONFIG}: set {key} to {text(value, 60)}{before}")
            mended[key] = value
    return mended, lines + check_config(recognised, mended)


def check_fits(
    recognised: Recognised, config: Mapping[str, Any], tensors: Sequence[Tensor], path: str
) -> None:
    """Raise Unsupported unless `tensors` are the parameters of the class that `config` describes.

    The sizes are those that transformers reads from `config`. A tied head has no tensor.
    """
    architecture = recognised.architecture
    hf = hook(architecture, "hf")
    reshaping = [key for key in hf.RESHAPING if config.get(key)]
    wrong = [f"{CONFIG} has {key} {text(config[key], 60)}" for key in reshaping]
    sizes = {size: config.get(keys[0]) for size, keys in architecture.config_keys.items()}
    for size, dim in architecture.config_defaults.items():
        symbol = sizes[dim.symbol]
        if sizes[size] is None and isinstance(symbol, int):
            sizes[size] = dim.factor * symbol
    whole = {size: value for size, value in sizes.items() if type(value) is int}
    expected = architecture.shapes(whole)
    if config.get("tie_word_embeddings", True):
        expected = {name: each for name, each in expected.items() if name not in architecture.ties}
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    wrong += [f"{name} is missing" for name in expected if name not in shapes]
    for name, shape in shapes.items():
        if name not in expected:
            wrong.append(f"{printable(name)} is not a parameter of this class")
        elif shape != expected[name]:
            wrong.append(f"{name} has shape {dims(shape)}, expected {dims(expected[name])}")
    if wrong:
        raise Unsupported(
            f"the tensors do not fit {hf.CLASS}: {'; '.join(wrong)}",
            where=path,
            hint=f"fix {CONFIG}, or {ONLY_WEIGHTS}",
        )


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the configuration with the weights' dtype, under the key that it already uses."""
    return {**config, **dict.fromkeys(_dtype_keys(config), dtype)}


def _dtype_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys for the dtype; by default the old key, which every version reads."""
    return [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]


def generation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation_config.json that transformers derives from such a config.json."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"_from_model_config": True} | {
        key: config[key] for key in keys if config.get(key) is not None
    }

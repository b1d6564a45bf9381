"""config.json and generation_config.json of a folder that transformers loads: mended, or made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cgpt_convert.architectures.hf_config_check import CONFIG, check_config, read_config
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.text import printable
from cgpt_convert.pickles.nodes import text
from cgpt_convert.targets.tokenizer.bpe import Tokenizer
from cgpt_convert.targets.whole_model import end_id
from cgpt_convert.tensors.shapes import dims
from cgpt_convert.tensors.tensor import Tensor

_CLASS = {"gpt2": "GPT2LMHeadModel"}  # architecture -> the class of transformers that has its head
_ABSENT = object()
_QUANTIZED = ("quantization_config", "compression_config")
_RESHAPING = ("add_cross_attention", "pruned_heads")  # keys that give a class other parameters

# What transformers' GPT2Config has where nothing is said. The activation is also what llama.cpp
# computes for every GPT-2: its files do not tell which one the model was trained with.
_ACTIVATION, _EPSILON = "gelu_new", 1e-5


def configured(folder: str) -> dict[str, Any] | None:
    """Return the folder's config.json with the activation that its absence means; None without."""
    config = read_config(folder)
    if config is not None and config.get("activation_function") is None:
        config["activation_function"] = _ACTIVATION
    return config


def make_activation(recognised: Recognised) -> str:
    """Return the activation to assume where nothing is configured."""
    return recognised.shape_of.activation if recognised.shape_of else _ACTIVATION


def make(
    recognised: Recognised, n_head: int, tokenizer: Tokenizer | None, said: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Return the configuration of a model without config.json, and a line that says of what.

    `said` is what a GGUF file states. For the rest it has what the known model of these shapes
    has; of others, the tensors and transformers' defaults.
    """
    model = recognised.shape_of
    activation = make_activation(recognised)
    line = f"{CONFIG} made; activation_function is assumed: {_ACTIVATION!r}, as llama.cpp computes"
    if model:
        line = (
            f"{CONFIG} made; the tensors have the shapes of {model.title}, so n_head {n_head} and "
            f"activation_function {activation!r} are assumed to be its"
        )
    vocab_size = recognised.sizes["vocab_size"]
    made = {
        "activation_function": activation,
        "architectures": [_CLASS[recognised.architecture.name]],
        "bos_token_id": end_id({}, tokenizer, "bos", vocab_size),
        "eos_token_id": end_id({}, tokenizer, "eos", vocab_size),
        "layer_norm_epsilon": model.layer_norm_epsilon if model else _EPSILON,
        "model_type": recognised.architecture.model_types[0],
        **recognised.sizes,
        "n_head": n_head,
        "tie_word_embeddings": True,
        **said,
    }
    if "activation_function" in said:
        line = f"{CONFIG} made of the fields of the GGUF file"
    return made, line


def mend(
    recognised: Recognised, config: Mapping[str, Any], *, tied: bool, dtype: str
) -> tuple[dict[str, Any], list[str]]:
    """The configuration that fits the tensors, and a line for everything that had to be changed.

    `dtype` is what the weights are written as. What contradicts the known model of these shapes,
    and may be right for all that, stays, and has a line as well.
    """
    architecture = recognised.architecture
    wanted: dict[str, Any] = {
        "model_type": architecture.model_types[0],
        "architectures": [_CLASS[architecture.name]],
        "n_ctx": recognised.sizes["n_positions"],  # llama.cpp's converter wants it
    }
    # the weights are numbers, which a loader would quantize, or take for packed, by such a key
    quantized = [key for key in _QUANTIZED if key in config]
    mended = {key: value for key, value in config.items() if key not in quantized}
    for size, keys in architecture.config_keys.items():
        value = recognised.n_head if size == "n_head" else recognised.sizes[size]
        # transformers reads the first, whatever other keys a file has
        present = [key for key in keys[1:] if config.get(key) is not None]
        wanted |= dict.fromkeys([keys[0], *present], value)
    default = architecture.config_defaults
    for size, dim in default.items():  # what may be left out stays so, if it means the same
        keys = architecture.config_keys[size]
        means = dim.factor * recognised.sizes[dim.symbol]
        if means == recognised.sizes[size] and all(config.get(key) is None for key in keys):
            wanted.pop(keys[0])
    wanted |= dict.fromkeys(_dtype_keys(config), dtype)
    if config.get("tie_word_embeddings", True) is not tied:
        wanted["tie_word_embeddings"] = tied
    lines = [f"{CONFIG}: dropped {key}: the weights are not quantized" for key in quantized]
    for key, value in wanted.items():
        was = config.get(key, _ABSENT)
        if was != value or type(was) is not type(value):
            before = "" if was is _ABSENT else f", was {text(was, 60)}"
            lines.append(f"{CONFIG}: {key} {text(value, 60)}{before}")
            mended[key] = value
    return mended, lines + check_config(recognised, mended)


def check_fits(
    recognised: Recognised, config: Mapping[str, Any], tensors: Sequence[Tensor], path: str
) -> None:
    """Raise Unsupported unless `tensors` are the parameters of the class that `config` describes.

    The sizes are those that transformers reads from `config`. A tied head has no tensor.
    """
    architecture = recognised.architecture
    wrong = [f"{CONFIG} has {key} {text(config[key], 60)}" for key in _RESHAPING if config.get(key)]
    sizes = {size: config.get(keys[0]) for size, keys in architecture.config_keys.items()}
    for size, dim in architecture.config_defaults.items():
        symbol = sizes[dim.symbol]
        if sizes[size] is None and isinstance(symbol, int):
            sizes[size] = dim.factor * symbol
    whole = {size: value for size, value in sizes.items() if type(value) is int}
    expected = architecture.shapes(whole)
    if config.get("tie_word_embeddings", True):
        expected = {name: each for name, each in expected.items() if name not in architecture.ties}
    found = {tensor.name: tensor.shape for tensor in tensors}
    wrong += [f"{name} is missing" for name in expected if name not in found]
    for name, shape in found.items():
        if name not in expected:
            wrong.append(f"{printable(name)} is not a parameter of it")
        elif shape != expected[name]:
            wrong.append(f"{name} is {dims(shape)}, expected {dims(expected[name])}")
    if wrong:
        raise Unsupported(
            f"the tensors are not those of {_CLASS[architecture.name]}: {'; '.join(wrong)}",
            where=path,
            hint=f"mend {CONFIG}; or --to safetensors writes the weights alone",
        )


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The configuration saying what type the weights are, under the key that it has for that."""
    return {**config, **dict.fromkeys(_dtype_keys(config), dtype)}


def _dtype_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys to say it with: the old one, which every version reads, unless dtype is there."""
    return [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]


def generation(config: Mapping[str, Any]) -> dict[str, Any]:
    """The generation_config.json that transformers derives from such a config.json."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"_from_model_config": True} | {
        key: config[key] for key in keys if config.get(key) is not None
    }

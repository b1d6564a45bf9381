"""Read the config.json next to a checkpoint and compare it with the tensors.

It contains values that the tensors' shapes do not determine, but it may be wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cgpt_convert.architectures.known_models import models
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.architectures.schema import Architecture
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.limits import CONFIG_BYTES
from cgpt_convert.core.strict_json import check_count
from cgpt_convert.core.text import printable
from cgpt_convert.sources.local import read
from cgpt_convert.sources.paths import find

CONFIG = "config.json"
# Cerebras/modelzoo calls its configurations 111m_mup and so on, the hub CerebrasGPT-111_muP
_MUP_NAME = r"(?i)[_-]mup(?![a-z0-9])"


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the content of the folder's config.json, or None if there is none.

    Raises Malformed if it is not a JSON object, Unsupported if it is larger than
    `limits.CONFIG_BYTES`, Unreadable if the system denies access.
    """
    path = os.path.join(os.fspath(folder), CONFIG)
    source = find(path)
    if source is None:
        return None
    if source.nbytes > CONFIG_BYTES:
        raise Unsupported(
            f"the file has {source.nbytes:,} bytes; at most {CONFIG_BYTES:,} are supported",
            where=path,
            hint=_HINT,
        )
    import json

    data = read(source, 0, source.nbytes)
    check_count(data, path, _HINT)
    try:
        # unlike a header, it may be edited by hand: fractions, NaN and repeated keys are accepted
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"invalid JSON: {error}", where=path, hint=_HINT) from error
    if not isinstance(config, dict):
        raise Malformed("the JSON is not an object", where=path, hint=_HINT)
    return config


_HINT = "fix the file, or move it away: the weights can be read without it"


def count(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    """Return the first value of these keys that is a positive integer."""
    values = (config.get(key) for key in keys)
    return next((v for v in values if type(v) is int and v > 0), None)


def check_config(recognised: Recognised, config: Mapping[str, Any]) -> list[str]:
    """Return one line for each contradiction between config.json and the tensors.

    Contradictions to the known model that has exactly these shapes are included.
    """
    architecture = recognised.architecture
    lines = []
    kind = config.get("model_type")
    if kind is not None and kind not in architecture.model_types:
        lines.append(f"model_type {_shown(kind)}, but the tensors are those of {architecture.name}")
    lines += _sizes(architecture, recognised.sizes, config)
    lines += head_lines(recognised, config)
    lines += _known(recognised, config)
    tieable = bool(architecture.ties)
    if tieable and config.get("tie_word_embeddings") is False and recognised.head != "own copy":
        lines.append(f"tie_word_embeddings false, but the head is {recognised.head}")
    return [f"{CONFIG} has {line}" for line in lines]


def mup_refusal(architecture: Architecture, config: Mapping[str, Any], path: str) -> str:
    """Return why muP weights give no valid logits, with the evidence of muP, or ""."""
    if not architecture.mup_reason:
        return ""
    signs = [f"{CONFIG} has {key} {_shown(config[key])}" for key in _mup_keys(architecture, config)]
    # CerebrasGPT-111_muP/checkpoint_4866/pytorch_model.bin: folders above these are the user's
    parts = os.path.abspath(path).split(os.sep)[-3:] if path else []
    for name in (*parts, config.get("_name_or_path")):
        signs += [f"its name is {_shown(name)}"] if _is_mup_name(name) else []
    return f"{architecture.mup_reason} ({'; '.join(signs)})" if signs else ""


def _is_mup_name(name: object) -> bool:
    # avoids compiling the pattern for most names
    return isinstance(name, str) and "mup" in name.lower() and bool(re.search(_MUP_NAME, name))


def _mup_keys(architecture: Architecture, config: Mapping[str, Any]) -> Iterator[str]:
    for key, value in config.items():
        bare = key.removeprefix("mup_")
        if bare in architecture.mup_neutral:
            if value is not None and value != architecture.mup_neutral[bare]:
                yield key
        elif bare != key and value not in (None, False):
            yield key


def _sizes(
    architecture: Architecture, sizes: Mapping[str, int], config: Mapping[str, Any]
) -> Iterator[str]:
    for size, keys in architecture.config_keys.items():
        if size not in sizes:
            continue
        for key in keys:
            said = config.get(key)
            if said is not None and (type(said) is not int or said != sizes[size]):
                yield f"{key} {_shown(said)}, but the tensors have {sizes[size]}"
        default = architecture.config_defaults.get(size)
        if default is None or default.symbol not in sizes:
            continue
        means = default.factor * sizes[default.symbol]
        if all(config.get(key) is None for key in keys) and means != sizes[size]:
            yield (
                f"no {keys[0]} (default {default} = {means}), but the tensors have {sizes[size]}"
            )


def head_lines(recognised: Recognised, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each error in the number of attention heads in config.json."""
    width = recognised.sizes.get("n_embd")
    for key in recognised.architecture.config_keys.get("n_head", ()):
        said = config.get(key)
        if said is None:
            continue
        if type(said) is not int or said < 1:
            yield f"{key} {_shown(said)}, which is not a positive integer"
        elif width is not None and width % said:
            yield f"{key} {said}, which does not divide the tensors' hidden size {width}"


def _known(recognised: Recognised, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield differences from the only known model of these shapes that shapes cannot show."""
    architecture = recognised.architecture
    rows = [
        model
        for model in models()
        if model.architecture == architecture.name and model.sizes == recognised.sizes
    ]
    if len(rows) != 1:
        return
    (model,) = rows
    said = count(config, architecture.config_keys.get("n_head", ()))
    if said is not None and said != model.n_head:
        yield f"n_head {said}, but {model.name}, which has these shapes, has {model.n_head}"
    activation = config.get("activation_function")
    if activation is not None and activation != model.activation:
        yield (
            f"activation_function {_shown(activation)}, but {model.name}, which has these shapes, "
            f"has {model.activation!r}"
        )


def _shown(value: object) -> str:
    text = printable(str(value) if isinstance(value, str) else repr(value))
    return repr(text[:80]) if isinstance(value, str) else text[:80]

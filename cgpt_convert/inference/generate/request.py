"""Requests in the JSON format of hosted inference endpoints: prompts and parameters."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from cgpt_convert.core.errors import BadRequest, Malformed
from cgpt_convert.core.text import printable
from cgpt_convert.inference.generate.generation_settings import GenerationSettings
from cgpt_convert.inference.generate.sampling import SamplingOptions
from cgpt_convert.sources.local import read
from cgpt_convert.sources.paths import named, open_source

_MOST = 1 << 20  # bytes; a hundred prompts of a full context fit
_HINT = 'use the form {"input_data": ["a prompt"], "params": {"max_new_tokens": 20}}'
# parameter -> type and default, as in transformers' GenerationConfig
_PARAMS: dict[str, tuple[type | tuple[type, ...], Any]] = {
    "max_new_tokens": (int, 20),
    "do_sample": (bool, False),
    "temperature": ((int, float), 1.0),
    "top_k": (int, 50),
    "top_p": ((int, float), 1.0),
    "num_beams": (int, 1),
    "early_stopping": (bool, False),
    "no_repeat_ngram_size": (int, 0),
    "seed": (int, None),
    "return_full_text": (bool, True),
}


class GenerationRequest(NamedTuple):
    """A generation request; its answer is a list of texts, one per prompt."""

    prompts: list[str]
    settings: GenerationSettings
    full_text: bool  # whether answers start with the prompt


def read_request(path: str) -> GenerationRequest:
    """Read a request from a JSON file. Raises BadRequest, naming the key, if invalid."""
    path = named(path)
    source = open_source(path)
    try:
        if source.nbytes > _MOST:
            raise BadRequest(
                f"the request has {source.nbytes:,} bytes; at most {_MOST:,} are supported",
                where=path,
                hint="split the request",
            )
        content = json.loads(read(source, 0, source.nbytes))
    except (ValueError, RecursionError) as error:
        message = f"invalid JSON: {printable(str(error))}"
        raise Malformed(message, where=path, hint=_HINT) from error
    finally:
        source.close()
    return _parsed(content, path)


def _parsed(content: object, path: str) -> GenerationRequest:
    if not isinstance(content, dict) or not content.keys() <= {"input_data", "params"}:
        raise BadRequest("the file is not a generation request", where=path, hint=_HINT)
    prompts, params = content.get("input_data"), content.get("params", {})
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
        raise BadRequest("input_data is not a list of strings", where=path, hint=_HINT)
    if not isinstance(params, dict):
        raise BadRequest("params is not an object", where=path, hint=_HINT)
    values = {key: _value(key, params, path) for key in (*_PARAMS, *params)}
    warp = SamplingOptions(float(values["temperature"]), values["top_k"], float(values["top_p"]))
    settings = GenerationSettings(
        values["max_new_tokens"],
        no_repeat_ngram=values["no_repeat_ngram_size"],
        warp=warp if values["do_sample"] else None,
        seed=values["seed"],
        beams=values["num_beams"],
        early_stopping=values["early_stopping"],
    )
    return GenerationRequest(prompts, settings, values["return_full_text"])


def _value(key: str, params: dict[str, Any], path: str) -> Any:
    """Return the parameter's value, or its default."""
    if key not in _PARAMS:
        hint = f"supported parameters: {', '.join(_PARAMS)}"
        raise BadRequest(f"unknown parameter {key!r}", where=path, hint=hint)
    kind, default = _PARAMS[key]
    value = params.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = " or ".join(
            each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,))
        )
        raise BadRequest(
            f"{key} is {printable(repr(value))[:80]}, expected {expected}", where=path, hint=_HINT
        )
    return value

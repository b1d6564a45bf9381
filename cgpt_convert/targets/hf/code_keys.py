"""Configuration keys that make a loader fetch or run code. No output contains them.

`auto_map` names classes in files of the repository, `custom_pipelines` functions, and
`_attn_implementation` and similar keys a kernel that is fetched from the Hub (CVE-2026-4372 sets
the internal name, which no check covers). transformers derives all of them where needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.text import printable
from cgpt_convert.targets.tokenizer.files import loose_object

_NAMES = frozenset(
    {"auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "_auto_class"}
)
_PARTS = ("_implementation", "kernel_config", "use_kernels", "auto_map", "remote_code")
_DEPTH = 100


def is_code_key(key: str) -> bool:
    """Return whether a loader may interpret the key's value as code or as a location of code."""
    bare = key.lower()
    return bare in _NAMES or any(part in bare for part in _PARTS)


def without_code(content: Mapping[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """Return the content without such keys at any depth, and a line that names the dropped keys.

    `name` is the file name used in the line. There is no line if nothing was dropped. Raises
    Unsupported if the content is nested too deeply.
    """
    dropped: list[str] = []
    kept = _cleaned(content, (), dropped, name)
    if not dropped:
        return kept, []
    keys = ", ".join(map(printable, dropped))
    return kept, [f"{name}: removed {keys}, so that loaders run no external code"]


def cleaned_file(data: bytes, name: str, where: str) -> tuple[bytes, list[str]]:
    """Return the JSON file called `name` without such keys, and the line for it.

    The bytes are unchanged if no key is dropped. Raises Malformed if it is not a JSON object.
    """
    kept, lines = without_code(loose_object(data, where), name)
    return (encoded(kept) if lines else data), lines


def encoded(content: Mapping[str, Any]) -> bytes:
    """Return the JSON as transformers writes it: sorted keys, indented by two."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _cleaned(
    content: Mapping[str, Any], path: tuple[str, ...], dropped: list[str], name: str
) -> dict[str, Any]:
    if len(path) > _DEPTH:
        raise Unsupported(f"objects are nested more than {_DEPTH} levels deep", where=name)
    kept = {}
    for key, value in content.items():
        if is_code_key(key):
            dropped.append(".".join((*path, key)))
        else:
            kept[key] = _value(value, (*path, key), dropped, name)
    return kept


def _value(value: Any, path: tuple[str, ...], dropped: list[str], name: str) -> Any:
    if isinstance(value, dict):
        return _cleaned(value, path, dropped, name)
    if isinstance(value, list):
        if len(path) > _DEPTH:
            raise Unsupported(f"lists are nested more than {_DEPTH} levels deep", where=name)
        return [_value(each, (*path, str(at)), dropped, name) for at, each in enumerate(value)]
    return value

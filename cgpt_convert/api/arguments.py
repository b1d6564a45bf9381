"""The arguments that several of the public functions share, and their conversion."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.sources.paths import is_url, named
from cgpt_convert.targets.renaming import Rule, name_map, rule_for

Path = str | os.PathLike[str]
Source = Path | Mapping[str, Any]  # a Checkpoint is also a mapping
Globs = str | Sequence[str]
# "REGEX=>REPLACEMENT", old name -> new name, or an option of `convert` and its value
NameRule = str | Mapping[str, str] | tuple[str, str]
NameRules = str | Mapping[str, str] | Sequence[NameRule]


def opened(source: Source, mapping: str | None = None, *, salvage: bool = False) -> Checkpoint:
    """Return `source` as a checkpoint; a path or URL is opened."""
    if not isinstance(source, Mapping):
        return open_checkpoint(source, mapping, salvage=salvage)
    if mapping is not None:
        raise BadRequest(
            "mapping can only be used with a path", hint="pass the mapping to open_checkpoint"
        )
    if isinstance(source, Checkpoint):
        return source
    from cgpt_convert.api.arrays import in_memory

    return in_memory(source)


def output_path(output: Path) -> str:
    """Return the path, or the URL without secrets. BadRequest if URLs of its kind are read-only."""
    path = named(os.fspath(output))
    if is_url(path):
        from cgpt_convert.sources.remote.urls import check_writable

        check_writable(path)
    return path


def patterns(globs: Globs) -> tuple[str, ...]:
    """Return the patterns as a tuple; a string is one pattern."""
    return (globs,) if isinstance(globs, str) else tuple(globs)


def rules(rename: NameRules) -> tuple[Rule, ...]:
    """Return the rules for new names, in order. Raises BadRequest if one is invalid."""
    every = (rename,) if isinstance(rename, str | Mapping) else rename
    return tuple(map(_rule, every))


def _rule(rule: NameRule) -> Rule:
    if isinstance(rule, str):
        return rule_for("rename", rule)
    if isinstance(rule, Mapping):
        return name_map("the mapping of names", rule)
    return rule_for(*rule)

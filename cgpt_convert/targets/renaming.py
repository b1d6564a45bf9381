"""New names for the tensors to write, by rules that are applied one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from cgpt_convert.core.errors import BadRequest
from cgpt_convert.core.strict_json import is_text_map, loads
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.sources.local import read, unreadable
from cgpt_convert.sources.paths import named, open_source

_ARROW = "=>"
_SHOWN = 3
_LISTED = 20


class Substitution(NamedTuple):
    """Replace every match of a regular expression. `label` is the rule in messages."""

    label: str
    pattern: re.Pattern[str]
    replacement: str  # a template as for `re.sub`

    def apply(self, names: Sequence[str], where: str) -> list[str]:
        """Return the new name of each of `names`. Raises BadRequest if none matches."""
        if not any(map(self.pattern.search, names)):
            raise BadRequest(f"{self.label} matches no tensor", where=where, hint=_first(names))
        return [self.pattern.sub(self.replacement, name) for name in names]


class NameMap(NamedTuple):
    """Rename the listed tensors. `label` is the rule in messages."""

    label: str
    new: Mapping[str, str]  # by the old name

    def apply(self, names: Sequence[str], where: str) -> list[str]:
        """Return the new name of each of `names`. Raises BadRequest for an unknown old name."""
        unknown = [*(self.new.keys() - {*names})]
        if unknown:
            missing = quoted_list(sorted(unknown), _LISTED)
            raise BadRequest(
                f"{self.label} contains names that no tensor has: {missing}",
                where=where,
                hint=_first(names),
            )
        return [self.new.get(name, name) for name in names]


Rule = Substitution | NameMap


def new_names(names: Iterable[str], rules: Sequence[Rule], where: str = "") -> dict[str, str]:
    """Return old name -> new name for all `names`, which are unique.

    Each rule applies to the names that the rules before it made. Raises BadRequest, for the
    checkpoint `where`, if a rule matches nothing, or if the new names are not unique.
    """
    old = [*names]
    if not rules:
        return dict(zip(old, old, strict=True))
    new = old
    for rule in rules:
        new = rule.apply(new, where)
    owners: dict[str, list[str]] = {}
    for before, after in zip(old, new, strict=True):
        owners.setdefault(after, []).append(before)
    empty = [name for name in owners.get("", ()) if name]
    if empty:
        raise BadRequest(
            f"the new name is empty for {quoted_list(empty, _LISTED)}",
            where=where,
            hint="change the rules, or use --exclude to skip the tensor",
        )
    lines = [
        f"{quoted_list(both, _LISTED)} would have the same new name, {quoted(name)}"
        for name, both in owners.items()
        if len(both) > 1
    ]
    if lines:
        more = len(lines) - _LISTED
        lines[_LISTED:] = [f"and {more:,} more"] if more > 0 else []
        raise BadRequest(
            "; ".join(lines),
            where=where,
            hint="change the rules, or use --match or --exclude to select fewer tensors",
        )
    return dict(zip(old, new, strict=True))


def rule_for(option: str, text: str) -> Rule:
    """Return the rule of an option of `convert`, such as "strip-prefix", with the value `text`.

    Raises BadRequest if it is invalid.
    """
    make = _OPTIONS.get(option)
    if make is None:
        choices = ", ".join(_OPTIONS)
        raise BadRequest(f"{option!r} is not a kind of rule for names", hint=f"use {choices}")
    if not text:
        raise BadRequest(f"the value of --{option} is empty")
    return make(f"--{option} {quoted(text)}", text)


def name_map(label: str, new: object) -> NameMap:
    """Return the rule for a mapping of old to new names. Raises BadRequest for other values."""
    if not is_text_map(new):
        raise BadRequest("the new names are not all strings", where=label)
    assert isinstance(new, Mapping)
    return NameMap(label, new)


def _strip_prefix(label: str, prefix: str) -> Rule:
    return Substitution(label, re.compile(rf"\A{re.escape(prefix)}"), "")


def _add_prefix(label: str, prefix: str) -> Rule:
    return Substitution(label, re.compile(r"\A"), prefix.replace("\\", r"\\"))


def _rename(label: str, text: str) -> Rule:
    regex, arrow, replacement = text.rpartition(_ARROW)
    if not arrow or not regex:
        raise BadRequest(
            f"{label} is not of the form REGEX{_ARROW}REPLACEMENT",
            hint=r"for example --rename '^encoder\.=>model.encoder.'",
        )
    try:
        pattern = re.compile(regex)
        pattern.sub(replacement, "")  # raises an error if the replacement is invalid
    except (re.error, IndexError) as error:
        raise BadRequest(f"{label} is not valid: {error}") from error
    return Substitution(label, pattern, replacement)


def _map(label: str, path: str) -> Rule:
    path = named(path)
    try:
        file = open_source(path)
        data = read(file, 0, file.nbytes)
    except OSError as error:
        raise unreadable(error, path) from error
    return name_map(label, loads(data, path))


_OPTIONS: Mapping[str, Callable[[str, str], Rule]] = {
    "strip-prefix": _strip_prefix,
    "add-prefix": _add_prefix,
    "rename": _rename,
    "map": _map,
}


def _first(names: Sequence[str]) -> str:
    return f"the first names are {quoted_list(names[:_SHOWN])}" if names else ""

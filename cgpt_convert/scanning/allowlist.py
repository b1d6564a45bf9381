"""The exact list of names that weight files need. All other names are reported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from cgpt_convert.core.errors import BadRequest
from cgpt_convert.pickles.flatten.children import is_script_class
from cgpt_convert.pickles.nodes import Value
from cgpt_convert.pickles.torch_calls.dangerous import is_dangerous, reads_on, runs_input
from cgpt_convert.pickles.trace.signatures import SIGNATURES

ALLOWED = frozenset(SIGNATURES)


class Allowlist:
    """The names allowed in one file: the built-in list and the user's additions."""

    def __init__(self, extra: tuple[str, ...] = ()) -> None:
        """Raise BadRequest for a name that cannot be allowed."""
        self.extra = frozenset(extra)
        for name in extra:
            _check(name)

    def unused(self, added: Iterable[str]) -> list[str]:
        """Return the user's additions that are not among `added`, the names that occurred."""
        met = frozenset(added)
        return sorted(name for name in self.extra if name.replace(":", ".") not in met)

    def allows(self, module: Value, name: Value) -> bool:
        """Return whether the name is allowed. Dotted names are not: they traverse attributes."""
        if not isinstance(module, str) or not isinstance(name, str):
            return False
        return ("." not in name and f"{module}.{name}" in ALLOWED) or self.adds(module, name)

    def adds(self, module: str, name: str) -> bool:
        """Return whether the user added the name."""
        if "." in name:
            return f"{module}:{name}" in self.extra
        return not self.extra.isdisjoint((f"{module}.{name}", f"{module}:{name}"))

    def allows_script(self, module: Value, name: Value) -> bool:
        """Return whether a TorchScript archive may use the name; its own classes are allowed."""
        script = isinstance(module, str) and isinstance(name, str) and "." not in name
        return self.allows(module, name) or (script and is_script_class(f"{module}.{name}"))

    def others(self, dotted: Iterable[str], *, script: bool = False) -> list[str]:
        """Return the names, as in `Checkpoint.globals`, that are not allowed.

        There a dot joins module and name; user additions are compared in the same form.
        """
        allowed = ALLOWED | {name.replace(":", ".") for name in self.extra}
        unknown = [name for name in dotted if name not in allowed]
        return [name for name in unknown if not (script and is_script_class(name))]


_GLOBS = frozenset("*?[]")


def _check(name: str) -> None:
    """Raise BadRequest for an invalid name, or one that runs or reads what a file chooses."""
    if _GLOBS.intersection(name):
        raise BadRequest(
            f"--allow takes exact names, not patterns: {name}",
            hint="use one --allow for each class",
        )
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if not module:
        raise BadRequest(f"--allow takes full names: {name}", hint="write it as module.Name")
    if reads_on(module, attribute):
        raise BadRequest(
            f"{name} cannot be allowed: it reads raw data between the opcodes of a pickle, so "
            "that the rest of the file cannot be scanned",
            hint="load the file where you trust it, and save only the arrays",
        )
    if runs_input(attribute) or any(is_dangerous(*split) for split in _splits(name)):
        raise BadRequest(
            f"{name} cannot be allowed: it can run any code that the file chooses",
            hint="--allow is for classes that only hold data",
        )


def is_allowable(name: str) -> bool:
    """Return whether `--allow` can be offered for a name, given as the option takes it.

    Only ASCII identifiers are: others may look like names that they are not.
    """
    if not (name.isascii() and all(map(str.isidentifier, re.split("[.:]", name)))):
        return False
    try:
        _check(name)
    except BadRequest:
        return False
    return True


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield module and name; for an attribute path also those of the objects it leads to."""
    module, _, attribute = name.replace(":", ".").rpartition(".")
    yield module, attribute
    _, colon, path = name.partition(":")
    parts = path.split(".") if colon else []
    for at in range(len(parts) - 1):
        yield ".".join(parts[at:-1]), parts[-1]

"""Which names weight files need: an exact list of what is allowed, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterable

from cgpt_convert.errors import BadRequest
from cgpt_convert.inert import Value
from cgpt_convert.pickles.children import is_script_class
from cgpt_convert.pickles.dangerous import is_dangerous
from cgpt_convert.pickles.signatures import SIGNATURES

ALLOWED = frozenset(SIGNATURES)


class Rule:
    """What is allowed in one file: the exact list, and what the user adds to it."""

    def __init__(self, extra: tuple[str, ...] = ()) -> None:
        self.extra = frozenset(extra)
        for name in extra:
            module, _, attribute = name.replace(":", ".").rpartition(".")
            if not module:
                raise BadRequest(f"not a full name: {name}", hint="write it as module.name")
            if is_dangerous(module, attribute):
                raise BadRequest(
                    f"{name} is no class to be allowed: what it does is up to the file"
                )

    def allows(self, module: Value, name: Value) -> bool:
        """Is it one of the names? A name with dots leads from one object to another: it is not."""
        if not isinstance(module, str) or not isinstance(name, str):
            return False
        return ("." not in name and f"{module}.{name}" in ALLOWED) or self.adds(module, name)

    def adds(self, module: str, name: str) -> bool:
        """Is it one of the names that the user added?"""
        if "." in name:
            return f"{module}:{name}" in self.extra
        return not self.extra.isdisjoint((f"{module}.{name}", f"{module}:{name}"))

    def allows_script(self, module: Value, name: Value) -> bool:
        """The same inside a TorchScript archive, whose classes are its own."""
        script = isinstance(module, str) and isinstance(name, str) and "." not in name
        return self.allows(module, name) or (script and is_script_class(f"{module}.{name}"))

    def others(self, dotted: Iterable[str], *, script: bool = False) -> list[str]:
        """Those of the names, as `Checkpoint.globals` has them, that are not allowed.

        A module and a name are joined by a dot there, and so they are in what the user allows.
        """
        allowed = ALLOWED | {name.replace(":", ".") for name in self.extra}
        unknown = [name for name in dotted if name not in allowed]
        return [name for name in unknown if not (script and is_script_class(name))]

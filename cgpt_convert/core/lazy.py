"""Functions and values that are named in a table and imported when they are first used."""

from __future__ import annotations

import importlib
from typing import Any


class LazyReference:
    """A reference "package.module:name". Calling it calls the function of that name.

    Tables of formats and targets consist of these, so that reading a table imports nothing else.
    `tests/test_registries.py` resolves each one and compares the signatures.
    """

    __slots__ = ("_value", "reference")

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self._value: Any = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function with these arguments."""
        return self.get()(*arguments, **named)

    def __repr__(self) -> str:
        return f"LazyReference({self.reference!r})"

    def get(self) -> Any:
        """Return the value, imported once."""
        if self._value is None:
            module, _, name = self.reference.partition(":")
            self._value = getattr(importlib.import_module(module), name)
        return self._value

"""Names that a pickle mentions, their uses, and the results of accepted calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cgpt_convert.pickles.nodes import Call, Global, PersistentId, Value
from cgpt_convert.pickles.trace.cursor import KEPT

EXTENSION = "extension code"  # the module of names known only to the loading program


class NameUse:
    """The use of a name that is not allowed, or not allowed in this way.

    `count` is the number of calls, `changed` whether attributes are set on it, `misused` whether it
    is an allowed name that is called in a way that weight files do not need.
    """

    __slots__ = ("call", "changed", "count", "misused", "module", "name", "position")

    def __init__(self, module: str, name: str, position: int) -> None:
        self.module = module
        self.name = name
        self.position = position  # of the first mention, and then of the first call
        self.call: Call | None = None
        self.count = 0
        self.changed = False
        self.misused = False

    @property
    def dotted(self) -> str:
        """The full name."""
        return f"{self.module}.{self.name}" if self.module else self.name


class TracedName(Global):
    """A name on the stack, with its recorded use; None if it is allowed.

    `signature` defines how it may be called (signatures.py).
    """

    __slots__ = ("signature", "use")

    def __init__(
        self, module: str, name: str, use: NameUse | None, signature: object = None
    ) -> None:
        super().__init__(module, name)
        self.use = use
        self.signature: Any = signature

    @property
    def is_function(self) -> bool:
        """Return whether it is an allowed name that may be called."""
        return self.use is None and self.signature.accept is not never


def never(_args: tuple[Value, ...]) -> None:
    """Accept no arguments: the signature of a name that is not called."""


class CallResult:
    """The result of accepted calls: its kind, the function, and what may be added to it.

    `state` checks whether BUILD may set a state. Additions that no writer makes are not accepted.
    `nbytes` is the size of array elements.
    """

    __slots__ = ("elements", "items", "kind", "maker", "nbytes", "state")

    def __init__(
        self,
        kind: str,
        maker: str,
        *,
        state: Callable[[Value], bool] | None = None,
        items: bool = False,
        elements: bool = False,
        nbytes: int = 0,
    ) -> None:
        self.kind = kind
        self.maker = maker
        self.state = state
        self.items = items
        self.elements = elements
        self.nbytes = nbytes

    def __repr__(self) -> str:
        return "..."

    def takes(self, state: Value) -> bool:
        """Return whether BUILD may set that state."""
        return self.state is not None and self.state(state)


def spelled(name: Value) -> str:
    """Return a module or name; a placeholder if it is not text or too long to be one."""
    return name if isinstance(name, str) and len(name) <= KEPT else "(not a name)"


def class_of(func: Value) -> Value:
    """Return the class in a persistent id of older torch, which saved it with its source."""
    if isinstance(func, PersistentId) and isinstance(func.value, tuple):
        return next((part for part in func.value if isinstance(part, Global)), func)
    return func

"""Names that a pickle mentions, what it does with them, and what the allowed ones give."""

from __future__ import annotations

from cgpt_convert.inert import Call, Global, PersistentId, Value
from cgpt_convert.pickles.opcodes import KEPT, Span
from cgpt_convert.pickles.stack import UNKNOWN

EXTENSION = "extension code"  # the module of names that only the loading program knows


class Use:
    """What a pickle does with a name that is not allowed. `count` is how often it is called."""

    __slots__ = ("call", "changed", "count", "module", "name", "position")

    def __init__(self, module: str, name: str, position: int) -> None:
        self.module = module
        self.name = name
        self.position = position  # of the first mention, and then of the first call
        self.call: Call | None = None
        self.count = 0
        self.changed = False

    @property
    def dotted(self) -> str:
        """The whole name."""
        return f"{self.module}.{self.name}" if self.module else self.name


class Name(Global):
    """A name as it lies on the stack, with the use that is made of it; None if it is allowed."""

    __slots__ = ("use",)

    def __init__(self, module: str, name: str, use: Use | None) -> None:
        super().__init__(module, name)
        self.use = use


def spelled(name: Value) -> str:
    """A module or name; where it is no text or too long to be one, a word for that."""
    return name if isinstance(name, str) and len(name) <= KEPT else "(not a name)"


def class_of(func: Value) -> Value:
    """The class that a persistent id of older torch stands for: one saved with its source."""
    if isinstance(func, PersistentId) and isinstance(func.value, tuple):
        return next((part for part in func.value if isinstance(part, Global)), func)
    return func


_PLAIN_BYTES = {("_codecs", "encode"), ("builtins", "bytearray"), ("builtins", "bytes")}


def content(func: Global, args: Value) -> Value:
    """What an allowed call gives: for the calls that make byte strings those, else unknown."""
    if (func.module, func.name) in _PLAIN_BYTES and isinstance(args, tuple) and args:
        return args[0] if isinstance(args[0], Span | str) else UNKNOWN
    return UNKNOWN

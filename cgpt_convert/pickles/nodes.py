"""Inert values that a pickle decodes to, and their display text. They cannot execute anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cgpt_convert.core.text import printable

# plain classes, for two reasons: dataclasses cost start-up time, and equality or hashing of
# values that a stranger nested and shared could cost any time at all

Value = Any  # None, bool, int, float, str, bytes, bytearray, tuple, or a class below
Pairs = list[tuple[Value, Value]]


class Global:
    """A class or function that the pickle names. It is not imported."""

    __slots__ = ("dotted", "module", "name", "pair")
    __match_args__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self.pair = module, name  # used several times per tensor, like `dotted`
        self.dotted = f"{module}.{name}"

    def __str__(self) -> str:
        return self.dotted


class PersistentId:
    """A reference to data outside the pickle, such as one of torch's storages."""

    __slots__ = __match_args__ = ("value",)

    def __init__(self, value: Value) -> None:
        self.value = value


class List(list[Value]):
    """A list. `changed` is the position of the last opcode that added to it.

    A call uses its arguments as they were at that time, so a reader has to know whether one was
    changed later. Dicts and calls have the same attribute.
    """

    __slots__ = ("changed",)

    def __init__(self, values: Sequence[Value] = ()) -> None:
        super().__init__(values)
        self.changed = 0


class Dict:
    """A dict as ordered pairs, without hashing: keys may be of any type and duplicated."""

    __slots__ = ("changed", "items")
    __match_args__ = ("items",)

    def __init__(self, items: Pairs | None = None) -> None:
        self.items: Pairs = [] if items is None else items
        self.changed = 0


class Set:
    """A set as ordered members, without hashing."""

    __slots__ = __match_args__ = ("members", "frozen")

    def __init__(self, members: list[Value], *, frozen: bool = False) -> None:
        self.members = members
        self.frozen = frozen


class Call:
    """A call that loading would make, recorded: `func(*args, **kwargs)`, then additions.

    `position` is the byte of the opcode that calls, `how` its name (REDUCE, NEWOBJ, ...). BUILD
    sets `state`; SETITEMS adds to `items`, APPENDS and ADDITEMS to `elements`; `changed` is the
    position of the last of them.
    """

    __slots__ = (
        "args",
        "changed",
        "elements",
        "func",
        "how",
        "items",
        "kwargs",
        "position",
        "state",
    )

    def __init__(
        self, func: Value, args: Value, position: int, how: str = "REDUCE", kwargs: Value = None
    ) -> None:
        self.func = func
        self.args = args
        self.position = position
        self.how = how
        self.kwargs = kwargs
        self.changed = 0
        self.state: Value = None
        self.items: Sequence[tuple[Value, Value]] = ()
        self.elements: Sequence[Value] = ()

    def add_items(self, pairs: Pairs) -> None:
        """Add pairs to `items`; the call takes ownership of the list."""
        self.items = _extended(self.items, pairs)

    def add_elements(self, values: list[Value]) -> None:
        """Add values to `elements`; the call takes ownership of the list."""
        self.elements = _extended(self.elements, values)

    def calls(self, module: str, *names: str) -> bool:
        """Return whether this calls `module.name` for one of `names`, spelled exactly so."""
        func = self.func
        return isinstance(func, Global) and func.module == module and func.name in names


def _extended(there: Sequence[Value], added: list[Value]) -> Sequence[Value]:
    # most calls never have any: two empty lists each would be half of what they cost
    if not isinstance(there, list):
        return added
    there.extend(added)
    return there


def text(value: Value, most: int = 200) -> str:
    """Return the value as one line of at most `most` characters, truncated with `...`."""
    if value is None or type(value) in (bool, float):
        return repr(value)
    line = _BoundedLine(most)
    line.write(value, 0)
    written = "".join(line.pieces)
    return written if len(written) <= most else written[: most - 3] + "..."


_DEEPEST = 8  # deep enough to recognise a value; a line shows no more
_WIDE_INT = 1024  # bits; decimal conversion of larger ones is slow and, in CPython, limited


class _BoundedLine:
    """A line under construction. It stops growing when it is full, however large the value."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.pieces: list[str] = []
        self.length = 0

    def add(self, piece: str) -> None:
        self.pieces.append(piece)
        self.length += len(piece)

    def write(self, value: Value, depth: int) -> None:
        if depth > _DEEPEST or self.length > self.most:
            self.add("...")
        elif isinstance(value, Dict):
            self.pairs(value.items, depth)
        elif isinstance(value, Set):
            self.each(value.members, "{", "}", depth)
        elif isinstance(value, list):
            self.each(value, "[", "]", depth)
        elif isinstance(value, tuple):
            self.each(value, "(", ",)" if len(value) == 1 else ")", depth)
        elif isinstance(value, PersistentId):
            self.each([value.value], "<persistent ", ">", depth)
        elif isinstance(value, Call):
            self.call(value, depth)
        else:
            self.add(self.plain(value))

    def plain(self, value: Value) -> str:
        if isinstance(value, str | bytes | bytearray):
            return printable(repr(value[: self.most]))
        if isinstance(value, int) and value.bit_length() > _WIDE_INT:
            return hex(value)
        return printable(str(value)) if isinstance(value, Global) else repr(value)

    def each(self, values: Sequence[Value], start: str, end: str, depth: int) -> None:
        self.add(start)
        for index, item in enumerate(values):
            if self.length > self.most:
                break
            if index:
                self.add(", ")
            self.write(item, depth + 1)
        self.add(end)

    def pairs(self, pairs: Sequence[tuple[Value, Value]], depth: int) -> None:
        self.add("{")
        for index, (key, item) in enumerate(pairs):
            if self.length > self.most:
                break
            if index:
                self.add(", ")
            self.write(key, depth + 1)
            self.add(": ")
            self.write(item, depth + 1)
        self.add("}")

    def call(self, call: Call, depth: int) -> None:
        self.write(call.func, depth + 1)
        args = call.args if isinstance(call.args, tuple) else (call.args,)
        self.each(args, "(", ")", depth)
        if isinstance(call.kwargs, Dict) and call.kwargs.items:
            self.pairs(call.kwargs.items, depth)
        if call.items:
            self.pairs(call.items, depth)
        if call.elements:
            self.each(call.elements, "[", "]", depth)
        if call.state is not None:
            self.add(" with state ")
            self.write(call.state, depth + 1)

"""The inert values that a pickle decodes to, and their text. Nothing here can run anything."""

from __future__ import annotations

from typing import Any

# plain classes, for two reasons: dataclasses cost start-up time, and equality or hashing of
# values that a stranger nested and shared could cost any time at all

Value = Any  # None, bool, int, float, str, bytes, bytearray, list, tuple, or a class below
Pairs = list[tuple[Value, Value]]


class Global:
    """A class or function that the pickle names. It is not looked up."""

    __slots__ = __match_args__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class PersistentId:
    """A reference to data outside the pickle; torch's storages come as these."""

    __slots__ = __match_args__ = ("value",)

    def __init__(self, value: Value) -> None:
        self.value = value


class Dict:
    """A dict as its pairs, in order, unhashed: a key may be anything and may come twice."""

    __slots__ = __match_args__ = ("items",)

    def __init__(self, items: Pairs | None = None) -> None:
        self.items: Pairs = [] if items is None else items


class Set:
    """A set as its members, in order, unhashed."""

    __slots__ = __match_args__ = ("members", "frozen")

    def __init__(self, members: list[Value], *, frozen: bool = False) -> None:
        self.members = members
        self.frozen = frozen


class Call:
    """A call that loading would make, recorded: `func(*args, **kwargs)`, then what is added.

    `position` is the byte of the opcode that calls, `how` its name (REDUCE, NEWOBJ, ...). BUILD
    sets `state`; SETITEMS adds to `items`, APPENDS and ADDITEMS to `elements`.
    """

    __slots__ = ("args", "elements", "func", "how", "items", "kwargs", "position", "state")

    def __init__(
        self, func: Value, args: Value, position: int, how: str = "REDUCE", kwargs: Value = None
    ) -> None:
        self.func = func
        self.args = args
        self.position = position
        self.how = how
        self.kwargs = kwargs
        self.state: Value = None
        self.items: Pairs = []
        self.elements: list[Value] = []

    def calls(self, module: str, *names: str) -> bool:
        """Does this call `module.name` for one of `names`, spelled exactly so?"""
        func = self.func
        return isinstance(func, Global) and func.module == module and func.name in names


def printable(text: str) -> str:
    """The text with control, formatting and other unprintable characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def text(value: Value, most: int = 200) -> str:
    """The value as one line of at most about `most` characters; what is cut is shown as `...`."""
    out: list[str] = []
    _write(value, out, most, 0)
    line = "".join(out)
    return line if len(line) <= most else line[: most - 3] + "..."


_DEEPEST = 8  # enough to recognise a value by; a line holds no more


def _write(value: Value, out: list[str], most: int, depth: int) -> None:
    if depth > _DEEPEST or sum(map(len, out)) > most:
        out.append("...")
        return

    def each(values: Any, opening: str, closing: str) -> None:
        out.append(opening)
        for index, item in enumerate(values):
            if index:
                out.append(", ")
            if sum(map(len, out)) > most:
                break
            _write(item, out, most, depth + 1)
        out.append(closing)

    match value:
        case Global():
            out.append(printable(str(value)))
        case PersistentId():
            each([value.value], "<persistent ", ">")
        case Dict():
            _write_pairs(value.items, out, most, depth)
        case Set():
            each(value.members, "{", "}")
        case Call():
            _write(value.func, out, most, depth + 1)
            each(value.args if isinstance(value.args, tuple) else [value.args], "(", ")")
            if value.items:
                _write_pairs(value.items, out, most, depth)
            if value.elements:
                each(value.elements, "[", "]")
            if value.state is not None:
                each([value.state], " with state ", "")
        case list():
            each(value, "[", "]")
        case tuple():
            each(value, "(", ",)" if len(value) == 1 else ")")
        case str() | bytes() | bytearray():
            out.append(printable(repr(value[:most])))
        case int() if value.bit_length() > _WIDE_INT:
            out.append(hex(value))
        case _:
            out.append(repr(value))


_WIDE_INT = 1024  # bits; decimal conversion of larger ones is slow and, in CPython, limited


def _write_pairs(pairs: list[tuple[Value, Value]], out: list[str], most: int, depth: int) -> None:
    out.append("{")
    for index, (key, item) in enumerate(pairs):
        if index:
            out.append(", ")
        if sum(map(len, out)) > most:
            break
        _write(key, out, most, depth + 1)
        out.append(": ")
        _write(item, out, most, depth + 1)
    out.append("}")

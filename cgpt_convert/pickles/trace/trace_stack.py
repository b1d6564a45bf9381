"""Stack and memo of the tracing machine, with memory use that is bounded for any pickle.

Values that are not kept are represented by UNKNOWN. `tracer` implements names and calls.
"""

from __future__ import annotations

from collections.abc import Callable

from cgpt_convert.core.limits import MEMO_GAP, MEMO_SPARSE, RANK, SizeLimit
from cgpt_convert.pickles.nodes import Dict, Set, Value
from cgpt_convert.pickles.trace.cursor import OpcodeReader, Span, UnpicklingFault
from cgpt_convert.pickles.trace.uses import TracedName

SHOWN = 16  # items kept per container, for display
# what is kept at all, by the pickle's bytes: lists, dicts and foreign calls; tuples
_CONTAINERS = SizeLimit(100_000, 64, 1_000_000)
_TUPLES = SizeLimit(1_000_000, 16, 8_000_000)
_TEXT_CHARS = 64 << 20
_LONGEST = RANK  # items kept per tuple: call arguments are shorter
NEWEST_PROTOCOL = 5  # PEP 574


class Unknown:
    """A value that is not kept. UNKNOWN may be any object; DROPPED is a container or a text."""

    def __repr__(self) -> str:
        return "..."


UNKNOWN = Unknown()
DROPPED = Unknown()


class TruncatedDict(Dict):
    """A dict of which only the first items are kept.

    `dropped` is the number of other items; `special` is whether one of their keys may be the name
    of an attribute that opcodes look up.
    """

    __slots__ = ("dropped", "special")

    def __init__(self) -> None:
        self.items = []
        self.dropped = 0
        self.special = False

    def add(self, values: list[Value]) -> None:
        """Add keys and values."""
        room = SHOWN - len(self.items)
        if room > 0:
            self.items.extend(pairs(values)[:room])
        if len(values) > 2 * room:
            dropped = values[2 * max(room, 0) :]
            keys = dropped[::2]
            function = function_in(dropped) if len(self.items) == SHOWN else None
            if function is not None:
                self.items.append((UNKNOWN, function))
            self.dropped += len(keys)
            self.special = self.special or any(map(is_special, keys))


# opcodes look up these methods of an object: APPEND and APPENDS, ADDITEMS, and BUILD the others
_LOOKED_UP = frozenset({"append", "extend", "add"})


def is_special(key: Value) -> bool:
    """Return whether an attribute of that name can change what later opcodes do to an object."""
    if type(key) is not str:
        return True
    return key in _LOOKED_UP or (key.startswith("__") and key.endswith("__"))


class TraceLimitReached(UnpicklingFault):
    """A limit of this program was reached; an unpickler would continue."""


class TraceStack:
    """The opcodes for plain values; each method is named after its opcode.

    A MARK begins a new stack, as in `decode.stack`. Popping from an empty stack raises IndexError,
    which the main loop must catch.
    """

    def __init__(self, opcodes: OpcodeReader) -> None:
        self.opcodes = opcodes
        self.stack: list[Value] = []  # since the last MARK
        # the stacks that MARKs interrupted; of empty ones their number: a tensor may be all 40s
        self.below: list[list[Value] | int] = []
        self.memo: list[Value] = []
        self.sparse: dict[int | str, Value] = {}
        nbytes = opcodes.end - opcodes.at
        self.room = [_CONTAINERS.of(nbytes), _TUPLES.of(nbytes), _TEXT_CHARS]
        self.odd = ""
        self.misframed = False  # whether the anomaly is in the frames
        self.extra = 0  # additional opcodes counted for expensive operations
        self.frame_end = 0

    @property
    def position(self) -> int:
        """The position of the current opcode."""
        return self.opcodes.position

    def pop_to_mark(self) -> list[Value]:
        """Return the values above the last MARK."""
        if not self.below:
            raise UnpicklingFault("an opcode needs a MARK, but the stack has none")
        values, interrupted = self.stack, self.below.pop()
        if isinstance(interrupted, list):
            self.stack = interrupted
        else:
            self.stack = []
            if interrupted > 1:
                self.below.append(interrupted - 1)
        return values

    def keep(self, value: Value, kind: int = 0, otherwise: Value = UNKNOWN) -> None:
        """Push a value if the limit for its kind allows it, else `otherwise`."""
        self.room[kind] -= 1
        self.stack.append(value if self.room[kind] > 0 else otherwise)

    def POP(self) -> None:
        if self.stack or not self.below:
            self.stack.pop()
        else:
            self.pop_to_mark()

    def MARK(self) -> None:
        below = self.below
        if self.stack:
            below.append(self.stack)
            self.stack = []
        elif below and isinstance(below[-1], int):
            below[-1] += 1
        else:
            below.append(1)

    def DUP(self) -> None:
        self.stack.append(self.stack[-1])

    def READONLY_BUFFER(self) -> None:
        self.stack.append(self.stack.pop())

    def PROTO(self, version: int) -> None:
        if version > NEWEST_PROTOCOL:
            raise UnpicklingFault(f"unknown pickle protocol {version}")

    def FRAME(self, nbytes: int) -> None:
        if self.position < self.frame_end != self.opcodes.at:  # C discards its read-ahead
            self.misframe("a frame begins inside another frame")
        self.frame_end = self.opcodes.at + nbytes

    def misframe(self, how: str) -> None:
        """Record that loaders disagree about the opcodes, because of a frame.

        This proves nothing for random bytes that happen to contain a frame longer than the file.
        """
        self.odd = self.odd or f"{how}: loaders read different data after it"
        self.misframed |= self.frame_end <= self.opcodes.end

    def TUPLE(self) -> None:
        self.keep(tuple(grow([], self.pop_to_mark(), _LONGEST)), 1, DROPPED)

    def EMPTY_TUPLE(self) -> None:
        self.stack.append(())

    def TUPLE1(self) -> None:
        self.keep((self.stack.pop(),), 1, DROPPED)

    def TUPLE2(self) -> None:
        pop = self.stack.pop
        second, first = pop(), pop()
        self.keep((first, second), 1, DROPPED)

    def TUPLE3(self) -> None:
        pop = self.stack.pop
        third, second, first = pop(), pop(), pop()
        self.keep((first, second, third), 1, DROPPED)

    def make(self, container: Callable[[list[Value]], Value], values: list[Value]) -> None:
        """Push a container of the values if the limit allows it, else an unknown one."""
        self.room[0] -= 1
        self.stack.append(container(values) if self.room[0] > 0 else DROPPED)

    def EMPTY_LIST(self) -> None:
        self.room[0] -= 1
        self.stack.append([] if self.room[0] > 0 else DROPPED)

    def EMPTY_DICT(self) -> None:
        self.room[0] -= 1
        self.stack.append(TruncatedDict() if self.room[0] > 0 else DROPPED)

    def EMPTY_SET(self) -> None:
        self.make(Set, [])

    def LIST(self) -> None:
        self.make(_list, self.pop_to_mark())

    def FROZENSET(self) -> None:
        self.make(_frozen_set, self.pop_to_mark())

    def DICT(self) -> None:
        self.make(_dict, self.pop_to_mark())

    def OUT_OF_BAND(self) -> None:
        self.odd = self.odd or "it refers to an out-of-band buffer, which is not in the file"
        self.stack.append(UNKNOWN)

    # -- the memo

    def GET(self, index: Value) -> None:
        if isinstance(index, int) and 0 <= index < len(self.memo):
            self.stack.append(self.memo[index])
            return
        if not isinstance(index, int):
            self.odd = self.odd or _UNUSUAL
        for key in _memo_keys(index):
            if key in self.sparse:
                self.stack.append(self.sparse[key])
                return
            if isinstance(key, int) and 0 <= key < len(self.memo):
                self.stack.append(self.memo[key])
                return
        raise UnpicklingFault(f"memo {index} is read before it is written")

    def PUT(self, index: Value) -> None:
        value = self.stack[-1]
        if not isinstance(index, int) or index < 0:
            self.put_unusual(index, value)
            return
        if index < len(self.memo):
            self.memo[index] = value
            return
        if index > MEMO_GAP + self.position:
            self.odd = self.odd or f"memo index {index:,} makes loaders allocate a lot of memory"
        if index == len(self.memo):
            self.memo.append(value)
            while len(self.memo) in self.sparse:
                self.memo.append(self.sparse.pop(len(self.memo)))
        else:
            self.put_apart(index, value)

    def put_unusual(self, index: Value, value: Value) -> None:
        """Write a memo entry with an unusual index. Python 2 accepts any line as an index."""
        self.odd = self.odd or _UNUSUAL
        for key in _memo_keys(index):
            self.put_apart(key, value)

    def put_apart(self, key: int | str, value: Value) -> None:
        """Write a memo entry that is out of order."""
        if key not in self.sparse and len(self.sparse) >= MEMO_SPARSE:
            raise TraceLimitReached(f"more than {MEMO_SPARSE:,} memo entries out of order")
        self.sparse[key] = value

    def MEMOIZE(self) -> None:
        if self.sparse:
            self.PUT(len(self.memo) + len(self.sparse))
        else:
            self.memo.append(self.stack[-1])


_UNUSUAL = "a memo index is not a plain number: loaders read it differently"
_INT32 = 1 << 32


def _memo_keys(index: Value) -> list[int | str]:
    """Return the keys that loaders use for a memo entry: text in Python 2, a number in others."""
    if isinstance(index, int):
        # Python 2 reads four bytes as signed, and a text opcode may name the same entry
        return [index, index + _INT32] if -_INT32 <= index < 0 else [index]
    digits = index.head.decode("latin-1") if isinstance(index, Span) else str(index)
    try:
        return [digits, int(digits)]
    except ValueError:
        return [digits]


def grow(shown: list[Value], values: list[Value], most: int = SHOWN) -> list[Value]:
    """Add as many of the values as are kept, and a function that is one of the others.

    A list with a function is not what weight files give to a call, wherever in it that is.
    """
    room = most - len(shown)
    if room > 0:
        shown.extend(values[:room])
    if len(values) > room >= 0:
        function = function_in(values[room:])
        if function is not None:
            shown.append(function)
    return shown


def function_in(values: list[Value]) -> Value:
    """Return the first function among values, which weight files call and do not store, or None."""
    return next(
        (each for each in values if isinstance(each, TracedName) and each.is_function), None
    )


def _list(values: list[Value]) -> Value:
    return grow([], values)


def _frozen_set(values: list[Value]) -> Value:
    return Set(grow([], values), frozen=True)


def _dict(values: list[Value]) -> Value:
    made = TruncatedDict()
    made.add(values)
    return made


def pairs(values: list[Value]) -> list[tuple[Value, Value]]:
    """Return keys and values, as many as are kept."""
    few = values[: 2 * SHOWN]
    return list(zip(few[::2], few[1::2], strict=False))

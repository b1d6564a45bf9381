"""Pickle bytes -> inert tree, protocols 0 to 5. Knows nothing of torch and calls nothing.

The opcodes come from the standard library's `pickletools`, which is the pickle format's
specification; what each does to the stack is here, how its argument is read in `arguments`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from cgpt_convert.errors import CgptError, Malformed, Unsupported
from cgpt_convert.inert import Call, Dict, Global, PersistentId, Set, Value
from cgpt_convert.limits import PICKLE, Limits
from cgpt_convert.pickles.arguments import READERS, Cursor, Incomplete


class Decoded(NamedTuple):
    """One pickle. `end` is where its STOP ends; `globals` maps each name to its first use."""

    value: Value
    end: int
    globals: dict[tuple[str, str], int]


def decode(
    data: bytes,
    limits: Limits = PICKLE,
    start: int = 0,
    persistent: Callable[[Value], Value] = PersistentId,
) -> Decoded:
    """The value that the pickle at `data[start:]` describes, as an inert tree.

    `persistent` makes the value that a reference to data outside the pickle stands for.

    Raises Malformed for bytes that no unpickler could read (Incomplete if they merely end early),
    Unsupported for extension codes, out-of-band buffers and anything past `limits`; both name the
    byte position.
    """
    if len(data) - start > limits.nbytes:
        raise Unsupported(f"a pickle of more than {limits.nbytes:,} bytes")
    machine = _Machine(data, limits, start, persistent)
    try:
        value = machine.run()
    except CgptError as error:
        error.message += f" (at byte {machine.opcode_at:,} of the pickle)"
        raise
    return Decoded(value, machine.at, machine.globals)


_MARK = object()


class _Machine(Cursor):
    """The pickle machine: a stack, a memo, and a method for each opcode, named after it."""

    def __init__(
        self, data: bytes, limits: Limits, start: int, persistent: Callable[[Value], Value]
    ) -> None:
        super().__init__(data, limits, start)
        self.persistent = persistent
        self.opcode_at = start
        self.stack: list[Value] = []
        self.marks = 0
        self.kept = 0
        self.most_kept = limits.kept.of(len(data) - start)
        self.most_memo = limits.memo.of(len(data) - start)
        self.memo: dict[int, Value] = {}
        self.globals: dict[tuple[str, str], int] = {}
        self.named: dict[tuple[str, str], Global] = {}

    def run(self) -> Value:
        data, dispatch, push = self.data, _DISPATCH, self.stack.append
        for _ in range(self.limits.opcodes):
            at = self.opcode_at = self.at
            try:
                operate, reader = dispatch[data[at]]
            except IndexError:
                raise Incomplete("the pickle ends before its STOP opcode") from None
            self.at = at + 1
            if operate is None:
                push(reader(self))
            elif reader is None:
                operate(self)
            else:
                operate(self, reader(self))
            if data[at] == _STOP:
                return self.pop()
        raise Unsupported(f"a pickle of more than {self.limits.opcodes:,} opcodes")

    # -- the stack

    def pop(self) -> Value:
        if not self.stack or self.stack[-1] is _MARK:
            raise Malformed("an opcode needs a value and the stack has none")
        return self.stack.pop()

    def top(self) -> Value:
        if not self.stack or self.stack[-1] is _MARK:
            raise Malformed("an opcode needs a value and the stack has none")
        return self.stack[-1]

    def keep(self, value: Value) -> None:
        """Push a value that takes more memory than the opcode that makes it."""
        self.kept += 1
        if self.kept > self.most_kept:
            raise Unsupported(f"more than {self.most_kept:,} lists, dicts and calls")
        self.stack.append(value)

    def pop_to_mark(self) -> list[Value]:
        stack = self.stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                values = stack[index + 1 :]
                del stack[index:]
                self.marks -= 1
                return values
        raise Malformed("an opcode needs a MARK and the stack has none")

    def MARK(self) -> None:
        self.marks += 1
        if self.marks > self.limits.depth:
            raise Unsupported(f"nested deeper than {self.limits.depth} levels")
        self.stack.append(_MARK)

    def POP(self) -> None:
        if self.stack and self.stack[-1] is _MARK:
            self.pop_to_mark()
        else:
            self.pop()

    def POP_MARK(self) -> None:
        self.pop_to_mark()

    def DUP(self) -> None:
        self.stack.append(self.top())

    def STOP(self) -> None:
        if len(self.stack) != 1:
            raise Malformed(f"{len(self.stack)} values are left at the end instead of one")

    def unknown(self) -> None:
        """Raise Malformed for a byte that is no opcode."""
        raise Malformed(f"no such opcode: 0x{self.data[self.opcode_at]:02x}")

    def PROTO(self, version: int) -> None:
        if version > _NEWEST_PROTOCOL:
            raise Unsupported(f"pickle protocol {version}")

    def FRAME(self, nbytes: int) -> None:
        if nbytes > len(self.data) - self.at:
            raise Incomplete("a frame is longer than the pickle")

    # -- plain values

    def NONE(self) -> None:
        self.stack.append(None)

    def NEWTRUE(self) -> None:
        self.stack.append(True)

    def NEWFALSE(self) -> None:
        self.stack.append(False)

    def EMPTY_LIST(self) -> None:
        self.keep([])

    def EMPTY_TUPLE(self) -> None:
        self.stack.append(())

    def EMPTY_DICT(self) -> None:
        self.keep(Dict())

    def EMPTY_SET(self) -> None:
        self.keep(Set([]))

    def LIST(self) -> None:
        self.keep(self.pop_to_mark())

    def TUPLE(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def TUPLE1(self) -> None:
        self.stack.append((self.pop(),))

    def TUPLE2(self) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def TUPLE3(self) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def DICT(self) -> None:
        self.keep(Dict(_pairs(self.pop_to_mark())))

    def FROZENSET(self) -> None:
        self.keep(Set(self.pop_to_mark(), frozen=True))

    # -- additions to what is on the stack

    def add_items(self, pairs: list[tuple[Value, Value]]) -> None:
        target = self.top()
        if isinstance(target, Dict):
            target.items.extend(pairs)
        elif isinstance(target, Call):
            target.add_items(pairs)
        else:
            raise Malformed(f"items are set on a {type(target).__name__}")

    def add_elements(self, values: list[Value]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Call):
            target.add_elements(values)
        else:
            raise Malformed(f"elements are appended to a {type(target).__name__}")

    def SETITEM(self) -> None:
        value, key = self.pop(), self.pop()
        self.add_items([(key, value)])

    def SETITEMS(self) -> None:
        self.add_items(_pairs(self.pop_to_mark()))

    def APPEND(self) -> None:
        self.add_elements([self.pop()])

    def APPENDS(self) -> None:
        self.add_elements(self.pop_to_mark())

    def ADDITEMS(self) -> None:
        values, target = self.pop_to_mark(), self.top()
        if isinstance(target, Set) and not target.frozen:
            target.members.extend(values)
        elif isinstance(target, Call):
            target.add_elements(values)
        else:
            raise Malformed(f"members are added to a {type(target).__name__}")

    # -- the memo

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Malformed(f"memo {index} is read before it is written")
        self.stack.append(self.memo[index])

    def memoize(self, index: int) -> None:
        if index < 0:
            raise Malformed("a negative memo index")
        if len(self.memo) > self.most_memo:
            raise Unsupported(f"more than {self.most_memo:,} memo entries")
        self.memo[index] = self.top()

    def MEMOIZE(self) -> None:
        self.memoize(len(self.memo))

    # -- names, calls and references: recorded only

    def name_global(self, module: Value, name: Value) -> Global:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Malformed("a global's module and name are not text")
        key = (module, name)
        if key not in self.named:
            self.globals[key] = self.opcode_at
            self.named[key] = Global(module, name)
        return self.named[key]

    def GLOBAL(self, names: tuple[str, str]) -> None:
        self.stack.append(self.name_global(*names))

    def STACK_GLOBAL(self) -> None:
        name, module = self.pop(), self.pop()
        self.stack.append(self.name_global(module, name))

    def REDUCE(self) -> None:
        args, func = self.pop(), self.pop()
        self.keep(Call(func, args, self.opcode_at))

    def NEWOBJ(self) -> None:
        args, cls = self.pop(), self.pop()
        self.keep(Call(cls, args, self.opcode_at, "NEWOBJ"))

    def NEWOBJ_EX(self) -> None:
        kwargs, args, cls = self.pop(), self.pop(), self.pop()
        self.keep(Call(cls, args, self.opcode_at, "NEWOBJ_EX", kwargs))

    def INST(self, names: tuple[str, str]) -> None:
        args = tuple(self.pop_to_mark())
        self.keep(Call(self.name_global(*names), args, self.opcode_at, "INST"))

    def OBJ(self) -> None:
        values = self.pop_to_mark()
        if not values:
            raise Malformed("OBJ without a class")
        self.keep(Call(values[0], tuple(values[1:]), self.opcode_at, "OBJ"))

    def BUILD(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Call):
            raise Malformed(f"a state is set on a {type(target).__name__}")
        if target.state is not None:
            raise Malformed("a state is set twice on one object")
        target.state = state

    def PERSID(self, reference: str) -> None:
        self.keep(self.persistent(reference))

    def BINPERSID(self) -> None:
        self.keep(self.persistent(self.pop()))

    def EXT1(self, code: int) -> None:
        raise Unsupported(f"extension code {code}: its meaning is not in the file")

    def NEXT_BUFFER(self) -> None:
        raise Unsupported("an out-of-band buffer, which is not in the file")

    READONLY_BUFFER = NEXT_BUFFER
    EXT2 = EXT4 = EXT1


_NEWEST_PROTOCOL = 5  # PEP 574
_STOP = ord(".")


def _pairs(values: list[Value]) -> list[tuple[Value, Value]]:
    if len(values) % 2:
        raise Malformed("an odd number of keys and values")
    return list(zip(values[::2], values[1::2], strict=True))


# opcodes that only push their argument, as most of a pickle's do: the loop does it, a call less
_PUSHED = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT "
    "BINFLOAT"
)
_SAME = {  # one operation in several encodings
    "GET": "recall",
    "BINGET": "recall",
    "LONG_BINGET": "recall",
    "PUT": "memoize",
    "BINPUT": "memoize",
    "LONG_BINPUT": "memoize",
}


def _operation(opcode: str) -> Callable[..., None] | None:
    """What the opcode does; None if it pushes its argument."""
    if opcode in _PUSHED.split():
        return None
    operate: Callable[..., None] = getattr(_Machine, _SAME.get(opcode, opcode))
    return operate


_DISPATCH: list[tuple[Any, Any]] = [(_Machine.unknown, None)] * 256  # operation, reader
for _info in pickletools.opcodes:
    _reader = READERS[_info.arg.name] if _info.arg else None
    _DISPATCH[ord(_info.code)] = (_operation(_info.name), _reader)

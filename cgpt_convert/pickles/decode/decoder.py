"""Strict decoding of pickles, protocols 0 to 5, to inert trees, independent of torch.

It calls nothing. `opcode_table` lists the opcodes, `argument_reader` reads their arguments, and
`stack` implements those for plain values. This module implements names and calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.limits import PICKLE, Limits
from cgpt_convert.pickles.decode.argument_reader import READERS, Incomplete
from cgpt_convert.pickles.decode.opcode_table import OPCODES
from cgpt_convert.pickles.decode.value_stack import ValueStack
from cgpt_convert.pickles.nodes import Call, Global, PersistentId, Value


class DecodedPickle(NamedTuple):
    """A decoded pickle. `end` is after its STOP; `globals` maps each name to its first use.

    `reach` is the end it declares: its last frame may end after its STOP.
    """

    value: Value
    end: int
    reach: int
    globals: dict[tuple[str, str], int]


def decode(
    data: bytes,
    limits: Limits = PICKLE,
    start: int = 0,
    persistent: Callable[[Value], Value] = PersistentId,
) -> DecodedPickle:
    """Decode the pickle at `data[start:]` to an inert tree.

    `persistent` returns the value for a reference to data outside the pickle. Raises Malformed for
    bytes that no unpickler could read (Incomplete if they merely end early), Unsupported for
    extension codes, out-of-band buffers and anything beyond `limits`; both give the byte position.
    """
    if len(data) - start > limits.nbytes:
        raise Unsupported(f"the pickle is larger than {limits.nbytes:,} bytes")
    machine = _PickleDecoder(data, limits, start, persistent)
    try:
        value = machine.run()
    except CgptError as error:
        error.message += f" (at byte {machine.opcode_at:,} of the pickle)"
        raise
    return DecodedPickle(value, machine.at, max(machine.at, machine.framed), machine.globals)


class _PickleDecoder(ValueStack):
    """The complete pickle machine: the main loop, and the opcodes for names and calls."""

    def __init__(
        self, data: bytes, limits: Limits, start: int, persistent: Callable[[Value], Value]
    ) -> None:
        super().__init__(data, limits, start)
        self.persistent = persistent
        self.frame_end = self.no_frame = len(data) + 1
        self.framed = start  # end of the last frame
        self.globals: dict[tuple[str, str], int] = {}
        self.named: dict[tuple[str, str], Global] = {}
        self.spelled = limits.names.of(len(data) - start)  # remaining characters for names

    def run(self) -> Value:
        data, dispatch, at = self.data, _DISPATCH, self.at
        try:
            for _ in range(self.limits.opcodes):
                self.opcode_at = at
                if at >= self.frame_end:
                    self.leave_frame()
                byte = data[at]
                operate, reader = dispatch[byte]
                at += 1
                if reader is None:
                    operate(self)
                    if byte == _STOP:
                        self.at = at
                        return self.stack.pop()
                    continue
                self.at = at
                if operate is None:
                    self.stack.append(reader(self))
                else:
                    operate(self, reader(self))
                at = self.at
        except IndexError:
            if self.opcode_at >= len(data):
                raise Incomplete("the pickle ends before its STOP opcode") from None
            # from the stack: reading arguments and references raises no IndexError
            raise Malformed("an opcode needs a value, but the stack is empty") from None
        raise Unsupported(f"the pickle has more than {self.limits.opcodes:,} opcodes")

    def STOP(self) -> None:
        left = len(self.stack) + sum(len(stack) + 1 for stack in self.below)  # and their MARKs
        if left != 1:
            raise Malformed(f"the pickle ends with {left} values on the stack instead of one")

    def unknown(self) -> None:
        """Raise Malformed for a byte that is not an opcode."""
        raise Malformed(f"unknown opcode 0x{self.data[self.opcode_at]:02x}")

    def PROTO(self, version: int) -> None:
        if version > _NEWEST_PROTOCOL:
            raise Unsupported(f"unknown pickle protocol {version}")

    def FRAME(self, nbytes: int) -> None:
        if self.opcode_at < self.frame_end < self.no_frame and self.frame_end != self.at:
            raise Malformed(
                "a frame begins inside another frame: loaders read different data after it"
            )
        if nbytes > len(self.data) - self.at:
            raise Incomplete("a frame is longer than the pickle")
        self.frame_end = self.framed = self.at + nbytes

    def leave_frame(self) -> None:
        if self.opcode_at > self.frame_end:
            raise Malformed("a frame ends inside an argument: loaders read different data after it")
        self.frame_end = self.no_frame

    # -- names, calls and references: recorded only

    def name_global(self, module: Value, name: Value) -> Global:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Malformed("a global's module and name are not text")
        key = (module, name)
        if key not in self.named:
            self.spelled -= len(module) + len(name)
            if self.spelled < 0:
                raise Unsupported("the names in the pickle are too long in total for its size")
            self.globals[key] = self.opcode_at
            self.named[key] = Global(module, name)
        return self.named[key]

    def GLOBAL(self, names: tuple[str, str]) -> None:
        self.stack.append(self.name_global(*names))

    def STACK_GLOBAL(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.name_global(module, name))

    def REDUCE(self) -> None:
        pop = self.stack.pop
        args, func = pop(), pop()
        self.keep(Call(func, args, self.opcode_at))

    def NEWOBJ(self) -> None:
        pop = self.stack.pop
        args, cls = pop(), pop()
        self.keep(Call(cls, args, self.opcode_at, "NEWOBJ"))

    def NEWOBJ_EX(self) -> None:
        pop = self.stack.pop
        kwargs, args, cls = pop(), pop(), pop()
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
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Call):
            raise Malformed(f"a state is set on a {type(target).__name__.lower()}")
        if target.state is not None:
            raise Malformed("a state is set twice on one object")
        target.state = state
        target.changed = self.opcode_at

    def PERSID(self, reference: str) -> None:
        self.keep(self.persistent(reference))

    def BINPERSID(self) -> None:
        self.keep(self.persistent(self.stack.pop()))

    def EXT1(self, code: int) -> None:
        raise Unsupported(f"the pickle uses extension code {code}, which the file does not define")

    def NEXT_BUFFER(self) -> None:
        raise Unsupported("the pickle refers to an out-of-band buffer, which is not in the file")

    READONLY_BUFFER = NEXT_BUFFER
    EXT2 = EXT4 = EXT1


_NEWEST_PROTOCOL = 5  # PEP 574
_STOP = ord(".")


# opcodes that only push their argument, which are the most common: the loop saves a call
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
    """Return the function for an opcode; None if it only pushes its argument."""
    if opcode in _PUSHED.split():
        return None
    operate: Callable[..., None] = getattr(_PickleDecoder, _SAME.get(opcode, opcode))
    return operate


_DISPATCH: list[tuple[Any, Any]] = [(_PickleDecoder.unknown, None)] * 256  # operation, reader
for _byte, (_name, _layout) in OPCODES.items():
    _DISPATCH[_byte] = (_operation(_name), READERS[_layout] if _layout else None)

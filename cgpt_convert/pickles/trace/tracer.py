"""Tracing of the names and calls that loading a pickle would use, in order, up to its end.

Unlike the strict decoder, it continues where a pickle is wrong only for us, keeps what came before
an error (an unpickler would have executed it), and uses little memory for any pickle. Values that
are not kept can make a call look more suspicious, never less: a function whose name is not known
counts as computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cgpt_convert.core.errors import CgptError
from cgpt_convert.core.limits import PICKLE
from cgpt_convert.pickles.nodes import Call, Global, PersistentId, Set, Value
from cgpt_convert.pickles.trace.cursor import OpcodeReader, Span, UnpicklingFault
from cgpt_convert.pickles.trace.dispatch import dispatch
from cgpt_convert.pickles.trace.payloads import PayloadStack
from cgpt_convert.pickles.trace.signatures import referenced, signature_of
from cgpt_convert.pickles.trace.trace_stack import (
    DROPPED,
    SHOWN,
    UNKNOWN,
    TraceLimitReached,
    TruncatedDict,
    Unknown,
    grow,
    pairs,
)
from cgpt_convert.pickles.trace.uses import (
    EXTENSION,
    CallResult,
    NameUse,
    TracedName,
    class_of,
    spelled,
)
from cgpt_convert.sources.local import Source

Allowed = Callable[[Value, Value], bool]

_NAMES = 10_000  # different foreign names
_CHANGE = 4  # additional opcodes counted for a change to a class
_CALLED = 3  # the same for a recorded call
_STOP = ord(".")


class Trace(NamedTuple):
    """The result of a trace. `fault` is why loading stops before STOP; "" if it does not."""

    value: Value
    end: int
    uses: list[NameUse]
    nested: list[Span]
    fault: str
    fault_at: int
    exhausted: bool  # a limit was reached: there may be more
    marked: bool  # it begins with PROTO, as protocols from 2 on
    opcodes: int
    odd: str  # an anomaly that no pickle writer produces, if loading continues
    misframed: bool  # whether it is a frame that makes loaders read other opcodes
    known: bool  # whether it names anything that is allowed


def trace(source: Source, at: int, allowed: Allowed, most: int = PICKLE.opcodes) -> Trace:
    """Trace the loading of the pickle at byte `at`, for at most `most` opcodes.

    Positions are bytes of the source. The only error raised is Unreadable.
    """
    machine = _Tracer(OpcodeReader(source, at), allowed, most)
    fault, exhausted = "", False
    try:
        machine.run()
    except TraceLimitReached as error:
        fault, exhausted = error.message, True
    except CgptError as error:
        if error.kind == "unreadable":
            raise
        fault = error.message
    return Trace(
        machine.value,
        machine.opcodes.at,
        [*machine.uses.values(), *machine.computed],
        [*machine.nested.values()],
        fault,
        machine.position,
        exhausted,
        machine.marked,
        machine.count,
        machine.odd,
        machine.misframed,
        any(name.use is None for name in machine.named.values()),
    )


class _Tracer(PayloadStack):
    """The opcodes for names and calls; each method is named after the opcode."""

    def __init__(self, opcodes: OpcodeReader, allowed: Allowed, most: int) -> None:
        super().__init__(opcodes)
        self.most = most
        self.start = opcodes.at
        self.count = 0
        self.allowed = allowed
        self.uses: dict[tuple[str, str], NameUse] = {}
        self.named: dict[tuple[str, str], TracedName] = {}
        self.computed: list[NameUse] = []
        self.beyond = NameUse("", "", 0)  # for calls beyond the limit that is displayed
        self.marked = False
        self.value: Value = UNKNOWN

    def run(self) -> None:
        table, opcodes = _TABLE, self.opcodes
        left = self.most
        buffer, index = opcodes.buffer, opcodes.index
        try:
            while True:  # performance-critical: 0.5 microseconds per opcode
                opcodes.begun = index
                if index == len(buffer):
                    opcodes.fill(1)
                    buffer, index = opcodes.buffer, 0
                byte = buffer[index]
                index += 1
                opcodes.index = index
                if byte == _STOP:
                    break
                method, argument, cost = table[byte]
                if argument is None:
                    method(self)
                else:
                    if method is None:
                        self.stack.append(argument(opcodes))
                    else:
                        method(self, argument(opcodes))
                    buffer, index = opcodes.buffer, opcodes.index
                    if self.frame_end and self.position < self.frame_end < opcodes.at:
                        self.misframe("a frame ends inside an argument")
                left -= cost
                if left < self.extra:
                    raise TraceLimitReached(f"more than {self.most:,} opcodes")
            self.value = self.stack.pop()
            if self.frame_end > opcodes.at:  # C continues with the next pickle after the frame
                self.misframe("a frame ends after the pickle")
        except IndexError:  # from the stack: nothing else raises IndexError
            raise UnpicklingFault("an opcode needs a value, but the stack is empty") from None
        finally:
            self.count = self.most - left + self.extra

    def PROTO(self, version: int) -> None:
        super().PROTO(version)
        self.marked |= self.position == self.start

    def unknown(self) -> None:
        raise UnpicklingFault("unknown opcode")

    # -- additions to what is on the stack

    def add(self, values: list[Value]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            grow(target, values)
        elif isinstance(target, Set):
            grow(target.members, values)
        elif isinstance(target, Call):
            if len(target.elements) < SHOWN:
                target.add_elements(values[: SHOWN - len(target.elements)])
        elif isinstance(target, TracedName):
            self.change(target)
        elif isinstance(target, CallResult) and not target.elements:
            self.misuse(target).add_elements(values[:SHOWN])

    def add_items(self, values: list[Value]) -> None:
        target = self.stack[-1]
        if isinstance(target, TruncatedDict):
            target.add(values)
        elif isinstance(target, Call):
            if len(target.items) < SHOWN:
                target.add_items(pairs(values)[: SHOWN - len(target.items)])
        elif isinstance(target, TracedName):
            self.change(target)
        elif isinstance(target, CallResult) and not target.items:
            self.misuse(target).add_items(pairs(values))

    def APPEND(self) -> None:
        self.add([self.stack.pop()])

    def APPENDS(self) -> None:
        self.add(self.pop_to_mark())

    def SETITEM(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.add_items([key, value])

    def SETITEMS(self) -> None:
        self.add_items(self.pop_to_mark())

    def BUILD(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Call):
            target.state = state
            self.into_call((state,))
        elif isinstance(target, TracedName):
            self.change(target)
        elif isinstance(target, CallResult):
            if not target.takes(state):
                self.never_kept(state)
                self.misuse(target).state = state
        elif target is not UNKNOWN:
            self.odd = self.odd or "a state is set on a value that is not an object"

    # -- names and calls

    def GLOBAL(self, names: tuple[Value, Value]) -> None:
        self.name(*names)

    def STACK_GLOBAL(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def name(self, module: Value, name: Value) -> None:
        """Push a class or function. It is looked up once, however often it is named."""
        module, name = spelled(module), spelled(name)
        known = self.named.get((module, name))
        if known is None:
            known = self.look_up(module, name)
            if len(self.named) < _NAMES:
                self.named[module, name] = known
        self.stack.append(known)

    def look_up(self, module: str, name: str) -> TracedName:
        if self.allowed(module, name):
            return TracedName(module, name, None, signature_of(module, name))
        return TracedName(module, name, self.use(module, name))

    def use(self, module: str, name: str) -> NameUse:
        key = (module, name)
        if key not in self.uses:
            if len(self.uses) == _NAMES:
                raise TraceLimitReached(f"more than {_NAMES:,} foreign names")
            self.uses[key] = NameUse(module, name, self.position)
        return self.uses[key]

    def EXT(self, code: int) -> None:
        self.name(EXTENSION, str(code))

    def call(self, func: Value, args: Value, how: str, kwargs: Value = None) -> None:
        """Push the result of a call, and record the call unless it is allowed."""
        func = class_of(func)
        use = func.use if isinstance(func, TracedName) else None
        if isinstance(func, TracedName) and use is None:
            result = func.signature.result(args, how, kwargs)
            if result is not None:
                self.stack.append(result)
                return
            self.never_kept(args)
            use = self.use(func.module, func.name)
            use.misused = True
        if not isinstance(func, _CALLABLE):
            raise UnpicklingFault("a value that is not callable is called")
        self.extra += _CALLED
        made = Call(func, args if isinstance(args, tuple) else (args,), self.position, how, kwargs)
        if use is None:
            use = self.beyond
            if len(self.computed) < SHOWN:
                use = NameUse("", "what another call returns", made.position)
                self.computed.append(use)
        _count(use, made)
        self.into_call(made.args)
        self.keep(made)

    def misuse(self, target: CallResult) -> Call:
        """Record an addition to an object that weight files do not make."""
        self.extra += _CALLED
        module, _, name = target.maker.rpartition(".")
        made = Call(Global(module, name), (UNKNOWN,), self.position)
        use = self.use(module, name)
        use.misused = True
        _count(use, made)
        return made

    def never_kept(self, value: Value) -> None:
        """Raise Exhausted if the value is needed but was dropped because of a limit."""
        parts = value if type(value) is tuple else (value,)
        if any(part is DROPPED for part in parts):
            raise TraceLimitReached("too many lists, dicts and tuples")

    def change(self, target: TracedName) -> None:
        """Record that attributes or items are set on a class or module itself."""
        self.extra += _CHANGE
        self.use(target.module, target.name).changed = True

    def REDUCE(self) -> None:
        args, func = self.stack.pop(), self.stack.pop()
        self.call(func, args, "REDUCE")

    def NEWOBJ(self) -> None:
        args, func = self.stack.pop(), self.stack.pop()
        self.call(func, args, "NEWOBJ")

    def NEWOBJ_EX(self) -> None:
        pop = self.stack.pop
        kwargs, args, func = pop(), pop(), pop()
        self.call(func, args, "NEWOBJ_EX", kwargs)

    def INST(self, names: tuple[Value, Value]) -> None:
        self.name(*names)  # first: Python's unpickler imports before it detects a missing MARK
        func = self.stack.pop()
        self.call(func, tuple(self.pop_to_mark()[:SHOWN]), "INST")

    def OBJ(self) -> None:
        values = self.pop_to_mark()
        if not values:
            raise UnpicklingFault("OBJ without a class")
        self.call(values[0], tuple(values[1 : SHOWN + 1]), "OBJ")

    def PERSID(self, reference: Value) -> None:
        self.never_kept(reference)
        value = referenced(reference)
        if isinstance(value, PersistentId):
            self.odd = self.odd or "a persistent ID has a form that torch never writes"
        self.keep(value, 1)

    def BINPERSID(self) -> None:
        self.PERSID(self.stack.pop())


def _count(use: NameUse, call: Call) -> None:
    use.count += 1
    if use.call is None:
        use.call, use.position = call, call.position


_CALLABLE = (Global, Call, PersistentId, Unknown, CallResult)
_TABLE = dispatch(_Tracer)

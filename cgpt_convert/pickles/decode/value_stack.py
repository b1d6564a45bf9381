"""Stack and memo of the strict pickle machine, and the opcodes for plain values.

The memory limit grows with the pickle. `decoder` implements names and calls.
"""

from __future__ import annotations

from collections.abc import Iterable

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.limits import Limits
from cgpt_convert.pickles.decode.argument_reader import PickleCursor
from cgpt_convert.pickles.nodes import Call, Dict, List, Set, Value


class ValueStack(PickleCursor):
    """The position in a pickle, and the values so far. Each method is named after its opcode.

    A MARK begins a new stack, and the opcode that ends it takes that whole stack, as in CPython's
    pickle.py. Popping from an empty stack raises IndexError, which the main loop must catch.
    """

    def __init__(self, data: bytes, limits: Limits, start: int) -> None:
        super().__init__(data, limits, start)
        self.opcode_at = start
        self.stack: list[Value] = []  # since the last MARK
        self.below: list[list[Value]] = []  # the stacks that MARKs interrupted
        self.kept = 0
        self.most_kept = limits.kept.of(len(data) - start)
        self.most_memo = limits.memo.of(len(data) - start)
        self.memo: dict[int, Value] = {}

    def keep(self, value: Value) -> None:
        """Push a value that takes more memory than the opcode that makes it."""
        self.kept += 1
        if self.kept > self.most_kept:
            raise Unsupported(f"more than {self.most_kept:,} lists, dicts and calls")
        self.stack.append(value)

    def pop_to_mark(self) -> list[Value]:
        values = self.stack
        if not self.below:
            raise Malformed("an opcode needs a MARK, but the stack has none")
        self.stack = self.below.pop()
        return values

    def MARK(self) -> None:
        if len(self.below) == self.limits.depth:
            raise Unsupported(f"nested deeper than {self.limits.depth} levels")
        self.below.append(self.stack)
        self.stack = []

    def POP(self) -> None:
        if self.stack or not self.below:
            self.stack.pop()
        else:
            self.pop_to_mark()

    def POP_MARK(self) -> None:
        self.pop_to_mark()

    def DUP(self) -> None:
        self.stack.append(self.stack[-1])

    # -- plain values

    def NONE(self) -> None:
        self.stack.append(None)

    def NEWTRUE(self) -> None:
        self.stack.append(True)

    def NEWFALSE(self) -> None:
        self.stack.append(False)

    def EMPTY_LIST(self) -> None:
        self.keep(List())

    def EMPTY_TUPLE(self) -> None:
        self.stack.append(())

    def EMPTY_DICT(self) -> None:
        self.keep(Dict())

    def EMPTY_SET(self) -> None:
        self.keep(Set([]))

    def LIST(self) -> None:
        self.keep(List(self.pop_to_mark()))

    def TUPLE(self) -> None:
        values = tuple(self.pop_to_mark())
        self.stack.append(values)

    def TUPLE1(self) -> None:
        self.stack.append((self.stack.pop(),))

    def TUPLE2(self) -> None:
        pop = self.stack.pop
        second, first = pop(), pop()
        self.stack.append((first, second))

    def TUPLE3(self) -> None:
        pop = self.stack.pop
        third, second, first = pop(), pop(), pop()
        self.stack.append((first, second, third))

    def DICT(self) -> None:
        self.keep(Dict(list(_pairs(self.pop_to_mark()))))

    def FROZENSET(self) -> None:
        self.keep(Set(self.pop_to_mark(), frozen=True))

    # -- additions to what is on the stack

    def add_items(self, pairs: Iterable[tuple[Value, Value]]) -> None:
        target = self.stack[-1]
        if isinstance(target, Dict):
            target.items.extend(pairs)
        elif isinstance(target, Call):
            target.add_items(list(pairs))
        else:
            raise Malformed(f"items are set on a {_kind(target)}")
        target.changed = self.opcode_at

    def add_elements(self, values: list[Value]) -> None:
        target = self.stack[-1]
        if isinstance(target, List):
            target.extend(values)
        elif isinstance(target, Call):
            target.add_elements(values)
        else:
            raise Malformed(f"elements are appended to a {_kind(target)}")
        target.changed = self.opcode_at

    def SETITEM(self) -> None:
        pop = self.stack.pop
        value, key = pop(), pop()
        target = self.stack[-1]
        if isinstance(target, Dict):
            target.items.append((key, value))
            target.changed = self.opcode_at
        else:
            self.add_items([(key, value)])

    def SETITEMS(self) -> None:
        pairs, target = _pairs(self.pop_to_mark()), self.stack[-1]
        if type(target) is Dict:  # nearly always
            target.items.extend(pairs)
            target.changed = self.opcode_at
        else:
            self.add_items(pairs)

    def APPEND(self) -> None:
        value, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, List):
            target.append(value)
            target.changed = self.opcode_at
        else:
            self.add_elements([value])

    def APPENDS(self) -> None:
        values = self.pop_to_mark()
        self.add_elements(values)

    def ADDITEMS(self) -> None:
        values, target = self.pop_to_mark(), self.stack[-1]
        if isinstance(target, Set) and not target.frozen:
            target.members.extend(values)
        elif isinstance(target, Call):
            target.add_elements(values)
            target.changed = self.opcode_at
        else:
            raise Malformed(f"members are added to a {_kind(target)}")

    # -- the memo

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Malformed(f"memo {index} is read before it is written")
        self.stack.append(self.memo[index])

    def memoize(self, index: int) -> None:
        if index < 0:
            raise Malformed("a negative memo index")
        if len(self.memo) >= self.most_memo:
            raise Unsupported(f"more than {self.most_memo:,} memo entries")
        self.memo[index] = self.stack[-1]

    def MEMOIZE(self) -> None:
        self.memoize(len(self.memo))


def _kind(value: Value) -> str:
    return type(value).__name__.lower()


def _pairs(values: list[Value]) -> Iterable[tuple[Value, Value]]:
    if len(values) % 2:
        raise Malformed("an odd number of keys and values")
    each = iter(values)
    return zip(each, each, strict=True)

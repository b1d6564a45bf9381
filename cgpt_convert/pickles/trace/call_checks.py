"""Checks of traced values, and call signatures composed of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cgpt_convert.pickles.nodes import Value
from cgpt_convert.pickles.trace.cursor import Span
from cgpt_convert.pickles.trace.trace_stack import DROPPED, TruncatedDict, is_special
from cgpt_convert.pickles.trace.uses import CallResult, TracedName, never

Check = Callable[[Value], bool]
Accept = Callable[[tuple[Value, ...]], Value]


class Signature(NamedTuple):
    """The permitted calls of a name: the opcodes, and the result for given arguments.

    `accept` returns the result, or None if the arguments do not fit.
    """

    accept: Accept
    opcodes: tuple[str, ...] = ("REDUCE",)
    keywords: bool = False

    def result(self, args: Value, opcode: str, kwargs: Value) -> Value:
        """Return the result of the call; None if it is not accepted."""
        fits = opcode in self.opcodes and (kwargs is None or self.keywords)
        return self.accept(args) if fits and isinstance(args, tuple) else None


NEVER = Signature(never)  # for names that are never called


# -- values


def is_integer(value: Value) -> bool:
    """Return whether it is an integer."""
    return type(value) is int


def is_flag(value: Value) -> bool:
    """Return whether it is a bool, which protocols 0 and 1 write as a number."""
    return type(value) in (bool, int) and value in (0, 1)


def is_number(value: Value) -> bool:
    """Return whether it is an integer, a float, or a long number left as text."""
    return type(value) in (bool, int, float) or isinstance(value, Span)


def is_text(value: Value) -> bool:
    """Return whether it is text or bytes."""
    return isinstance(value, str | Span)


is_bytes = is_text  # Python 2's strings are both, and protocol 2 writes bytes as text


def is_any(_value: Value) -> bool:
    """Return True: any value is accepted."""
    return True


def is_none(value: Value) -> bool:
    """Return whether it is None."""
    return value is None


def is_integers(value: Value) -> bool:
    """Return whether it is a tuple, a list or a torch.Size of integers."""
    if type(value) is tuple or type(value) is list:
        return _INTEGER.issuperset(map(type, value))
    return isinstance(value, CallResult) and value.kind == "size"


_INTEGER = frozenset({int})


def is_items(value: Value) -> bool:
    """Return whether it is a dict."""
    return isinstance(value, TruncatedDict)


def is_mapping(value: Value) -> bool:
    """Return whether it is a dict or an OrderedDict."""
    return isinstance(value, TruncatedDict) or made("OrderedDict")(value)


def is_data(value: Value) -> bool:
    """Return whether it is anything but a function or class that weight files call."""
    return not isinstance(value, TracedName) or value.signature is NEVER or value.use is not None


def made(*kinds: str) -> Check:
    """Return a check for the results of calls of those kinds."""
    return lambda value: isinstance(value, CallResult) and value.kind in kinds


def named(names: Iterable[str]) -> Check:
    """Return a check for names with one of these dotted spellings."""
    known = frozenset(names)
    return lambda value: isinstance(value, TracedName) and value.dotted in known


def one_of(*values: Value) -> Check:
    """Return a check for those strings or integers."""
    return lambda value: type(value) in (str, int) and value in values


def either(*checks: Check) -> Check:
    """Return a check that passes if one of several does."""
    return lambda value: any(check(value) for check in checks)


def each_of(check: Check) -> Check:
    """Return a check for tuples or lists of such values."""
    return lambda value: type(value) in (tuple, list) and all(map(check, value))


def tuple_of(*checks: Check, optional: int = 0) -> Check:
    """Return a check for tuples of such values, of which the last may be missing."""
    least = len(checks) - optional

    def fits(value: Value) -> bool:
        if type(value) is not tuple or not least <= len(value) <= len(checks):
            return False
        for check, item in zip(checks, value, strict=False):  # noqa: SIM110  faster than all()
            if not check(item):
                return False
        return True

    return fits


# -- attributes, which BUILD sets

_OF_A_DICT = frozenset(dir(OrderedDict))


def is_attributes(value: Value) -> bool:
    """Return whether it is a dict of attributes, none of which opcodes look up."""
    if not isinstance(value, TruncatedDict) or value.special:
        return False
    return not any(is_special(key) or not is_data(item) for key, item in value.items)


def is_state(value: Value) -> bool:
    """Return whether it is attributes, optionally with those of `__slots__`."""
    optional = either(is_none, is_attributes)
    return optional(value) or tuple_of(optional, optional)(value)


def is_state_of_dict(value: Value) -> bool:
    """Return whether it is attributes of a dict, such as the `_metadata` of a state dict."""
    if not is_attributes(value) or value.dropped:
        return False
    return not any(key in _OF_A_DICT for key, _ in value.items)


def is_state_of_any(value: Value) -> bool:
    """Return whether it sets no special attribute: the state of a user-allowed class."""
    parts = value if type(value) is tuple else (value,)
    return not any(
        part is DROPPED
        or (
            isinstance(part, TruncatedDict)
            and (part.special or any(is_special(k) for k, _ in part.items))
        )
        for part in parts
    )


# -- arguments


def fixed(result: Value, *checks: Check, optional: int = 0) -> Accept:
    """Return a function that accepts such arguments, some optional, and returns `result`."""
    fits = tuple_of(*checks, optional=optional)
    return lambda args: result if fits(args) else None


def first(*checks: Check, optional: int = 0) -> Accept:
    """Return a function that accepts such arguments and returns the first: the call's bytes."""
    fits = tuple_of(*checks, optional=optional)
    return lambda args: (args[0] if args else "") if fits(args) else None

"""Validation of the arguments of recognised calls; arguments that do not fit are Malformed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.limits import INT64, RANK
from cgpt_convert.pickles.nodes import Call, Dict, Global, List, Value, text
from cgpt_convert.tensors import dtypes
from cgpt_convert.tensors.dtypes import DType


def name_of(call: Call) -> tuple[str, str]:
    """Return module and name of the global that is called; two empty strings if there is none."""
    func = call.func
    return func.pair if isinstance(func, Global) else ("", "")


def arguments(call: Call, recognise: Callable[..., object], *, given: int) -> tuple[Value, ...]:
    """Return the call's arguments if `recognise` accepts as many and nothing is added.

    `given` is the number of leading parameters that the caller supplies. torch's unpicklers let a
    file change a tensor after making it (BUILD, SETITEM). No version of torch writes that, and
    readers would disagree about the values.
    """
    if recognise not in _COUNTS:
        most = recognise.__code__.co_argcount - given
        _COUNTS[recognise] = range(most - len(recognise.__defaults__ or ()), most + 1)
    if not (isinstance(call.args, tuple) and len(call.args) in _COUNTS[recognise]):
        raise Malformed(f"{call.func} is called with invalid arguments {text(call.args)}")
    if call.how != "REDUCE" or call.state is not None or call.items or call.elements:
        raise Malformed(f"a tensor is changed after it is created: {text(call)}")
    if not are_settled(call.args, call.position):
        raise Malformed(f"an argument is changed after the call: {text(call)}")
    return call.args


class Ambiguous(Malformed):
    """The values in the file depend on the order in which a loader works."""


def are_settled(values: Sequence[Value], position: int, depth: int = 0) -> bool:
    """Return whether no list, dict or call among the values is changed after byte `position`.

    A call uses its arguments as they are when it is made. Contents of tuples are checked, too.
    """
    for value in values:
        kind = type(value)
        if kind is tuple:
            if depth == _NESTED or len(value) > RANK or _INTEGER.issuperset(map(type, value)):
                continue
            if not are_settled(value, position, depth + 1):
                return False
        elif kind in _CHANGEABLE and value.changed > position:
            return False
    return True


_CHANGEABLE = frozenset({List, Dict, Call})
_NESTED = 3  # tuples in the arguments of a call in the arguments of a wrapper


_COUNTS: dict[Callable[..., object], range] = {}  # of arguments; worked out once for each function


def integers(value: Value) -> tuple[int, ...]:
    """Return the integers of a tuple, a list or a torch.Size; at most RANK of them."""
    if type(value) is tuple and len(value) <= RANK and _INTEGER.issuperset(map(type, value)):
        return value  # as torch writes it
    if isinstance(value, Call) and value.calls("torch", "Size") and isinstance(value.args, tuple):
        if value.changed or not are_settled(value.args, value.position):
            raise Malformed(f"a size is changed after it is created: {text(value)}")
        value = value.args[0] if len(value.args) == 1 else value.args
    if isinstance(value, tuple | list) and len(value) > RANK:
        raise Unsupported(f"a tensor has {len(value)} dimensions")
    if not isinstance(value, tuple | list) or not _INTEGER.issuperset(map(type, value)):
        raise Malformed(f"not a tuple of integers: {text(value)}")
    return tuple(value)


_INTEGER = frozenset({int})


def shape_of(value: Value) -> tuple[int, ...]:
    """Return the sizes of a tensor that is not a view and so is not limited by a storage."""
    sizes = integers(value)
    if len(sizes) > RANK or not all(0 <= size < INT64 for size in sizes):
        raise Malformed(f"invalid shape {text(sizes)}")
    return sizes


def integer(value: Value) -> int:
    """Return the value, which must be an integer and not a bool."""
    if type(value) is not int:
        raise Malformed(f"not an integer: {text(value)}")
    return value


def dtype_of(value: Value) -> DType:
    """Return the element type that a pickled `torch.dtype` names."""
    match value:
        case Global(module="torch", name=name) if name in dtypes.BY_TORCH:
            return dtypes.BY_TORCH[name]
    raise Unsupported(f"unknown dtype {text(value)}")

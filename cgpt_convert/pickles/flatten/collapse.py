"""Folding of large containers without tensors (logs, vocabularies, samples) into one value."""

from __future__ import annotations

from collections.abc import Iterable

from cgpt_convert.core.limits import NESTING
from cgpt_convert.pickles.flatten.children import FEW, PLAIN, Pairs, children, is_short
from cgpt_convert.pickles.nodes import Call, Dict, Global, PersistentId, Value
from cgpt_convert.pickles.torch_calls import numpy_arrays

_SIMPLE = PLAIN | {Global}
_MANY = 1_000  # values; larger containers are not settings that a user looks up by name
# calls by which plain values are written, protocol 2's bytes among them
_VALUES = frozenset({("torch", "Size"), ("torch", "device"), ("_codecs", "encode")}) | {
    (module, name) for module in ("builtins", "__builtin__") for name in ("bytes", "complex")
}


class CollapsedContainers:
    """The containers of one tree that are folded into one value."""

    def __init__(self, most: int) -> None:
        self.most = most  # maximum number of containers inspected
        self.known: dict[int, bool] = {}  # id of a container -> whether it has no tensors

    def folds(self, value: Value, pairs: Pairs) -> bool:
        """Return whether the container with these `pairs` is large and has no tensors."""
        attributes = isinstance(value, Call) and value.state is not None
        return len(pairs) > _MANY and not attributes and self.is_free(value)

    def is_free(self, value: Value, depth: int = 0) -> bool:
        """Return whether the value has no tensors; False also for cycles and deep nesting."""
        key = id(value)
        if key not in self.known:
            if depth > NESTING or len(self.known) == self.most:
                return False
            self.known[key] = False  # in case it contains itself
            self.known[key] = self._is_free(value, depth)
        return self.known[key]

    def are_free(self, values: Iterable[Value], depth: int) -> bool:
        """Return whether none of the values of a container has tensors."""
        for value in values:  # there may be a million
            if type(value) in _SIMPLE or not value or _is_short(value):
                continue
            if type(value) is Call and _is_value(value):
                continue
            if not self.is_free(value, depth + 1):
                return False
        return True

    def _is_free(self, value: Value, depth: int) -> bool:
        if isinstance(value, list | tuple):
            return self.are_free(value, depth)
        pairs = children(value)
        if pairs is not None:
            return self.are_free((value for _, value in pairs), depth)
        return not isinstance(value, Call | PersistentId)


def _is_value(call: Call) -> bool:
    """Return whether the call makes a plain value and does nothing else."""
    if call.state is not None or call.items or call.elements or call.kwargs is not None:
        return False
    if not (isinstance(call.func, Global) and isinstance(call.args, tuple)):
        return False
    written = call.func.pair in _VALUES and all(map(is_short, call.args))
    return written or numpy_arrays.scalar(call) is not None


def _is_short(value: Value) -> bool:
    """Return whether it is a few plain values, which are faster to check than to look up."""
    if type(value) is Dict:
        return len(value.items) <= FEW and PLAIN.issuperset([type(v) for _, v in value.items])
    return is_short(value)

"""Cost limits for walking the tree of one pickle, in proportion to the pickle's size."""

from __future__ import annotations

from cgpt_convert.checkpoint import CompositeTensor
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.limits import NAME, NAMES, NODES, REPEATED, TENSORS
from cgpt_convert.pickles.flatten.children import PLAIN
from cgpt_convert.pickles.nodes import List, Value
from cgpt_convert.tensors.tensor import Tensor

_VALUES = "values"
_TOLD = "characters of names"
_MANY = 9  # more dimensions than a weight has
_LINE = 64  # values that fit into a line
_PER_VISIT = 8  # values formatted in the time of one visit


class WalkBudget:
    """The remaining budget. Methods deduct from it and raise Unsupported when it is used up."""

    def __init__(self, path: str, nbytes: int) -> None:
        self.path = path
        self.nodes = NODES.of(nbytes)
        self.repeated = REPEATED.of(nbytes)
        self.tensors = TENSORS.of(nbytes)
        self.names = NAMES.of(nbytes)
        self.tied = self.names  # in addition: outputs write the first name for each tied one

    def visit(self, name: str, cost: int = 1) -> None:
        """Deduct one value under `name`, or `cost` values."""
        self.nodes -= cost
        if len(name) > NAME:
            raise Unsupported(f"a name of more than {NAME:,} characters", where=self.path)
        self.names -= len(name)
        if self.nodes < 0 or self.names < 0:
            raise self._exceeded(_VALUES if self.nodes < 0 else _TOLD)

    def fits(self, count: int) -> None:
        """Raise Unsupported if `count` values exceed the remaining visits."""
        if count > self.nodes:
            raise self._exceeded(_VALUES)

    def tie(self, name: str) -> None:
        """Deduct the name of the first of several identical tensors, once for each other one."""
        self.tied -= len(name)
        if self.tied < 0:
            raise self._exceeded("characters of names of tied tensors")

    def again(self, cost: int) -> None:
        """Deduct a value that was visited before: five bytes of pickle can double the tree."""
        self.repeated -= cost
        if self.repeated < 0:
            raise self._exceeded("shared values")

    def tensor(self, tensor: Tensor | CompositeTensor) -> None:
        """Deduct a tensor and its parts; one of many dimensions counts as several."""
        self.tensors -= _tensor_cost(tensor)
        if self.tensors < 0:
            raise self._exceeded("tensors")

    def _exceeded(self, what: str) -> Unsupported:
        return Unsupported(f"too many {what} for a pickle of its size", where=self.path)


def text_cost(value: Value) -> int:
    """Return the cost of displaying a value that is not a container, in plain values."""
    if type(value) in PLAIN:
        return 1
    if type(value) in (List, tuple):
        return 1 + min(len(value), _LINE) // _PER_VISIT
    return 1 + _LINE // _PER_VISIT


def _tensor_cost(tensor: Tensor | CompositeTensor) -> int:
    """Return the cost of a tensor, in plain ones of few dimensions."""
    if isinstance(tensor, CompositeTensor):
        return 1 + sum(map(_tensor_cost, tensor.parts))
    return 1 + len(tensor.shape) // _MANY

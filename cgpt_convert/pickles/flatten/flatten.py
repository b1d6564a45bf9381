"""Flattening of an inert tree: containers to dotted names, calls to tensors, the rest to leaves."""

from __future__ import annotations

from collections.abc import Iterable

from cgpt_convert.checkpoint import (
    Checkpoint,
    CollapsedContainer,
    CompositeTensor,
    NonTensorValue,
    unreadable,
)
from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.limits import (
    EXPANSION,
    EXPANSION_FLOOR,
    NAME,
    NAMES,
    NESTING,
    NODES,
    REPEATED,
    TENSORS,
    Prices,
)
from cgpt_convert.core.text import printable
from cgpt_convert.pickles.decode.decoder import DecodedPickle
from cgpt_convert.pickles.flatten.children import (
    FEW,
    PLAIN,
    TENSOR_ATTRIBUTE,
    Groups,
    Pairs,
    ScriptClasses,
    children,
    comes_twice,
    distinct,
    has_keys,
    is_data_parallel,
    is_script_class,
    is_script_object,
    is_short,
    members,
    script_members,
)
from cgpt_convert.pickles.nodes import Call, Dict, Global, List, PersistentId, Set, Value, text
from cgpt_convert.pickles.torch_calls import numpy_arrays
from cgpt_convert.pickles.torch_calls.argument_checks import Ambiguous
from cgpt_convert.pickles.torch_calls.dense import DATA, StorageTable, attached
from cgpt_convert.pickles.torch_calls.rebuild import KNOWN, rebuild
from cgpt_convert.tensors.tensor import Tensor

_SIMPLE = PLAIN | {Global}
_MANY = 1_000  # values; larger containers are not settings that a user looks up by name
# calls by which plain values are written, protocol 2's bytes among them
_FOLDABLE = frozenset({("torch", "Size"), ("torch", "device"), ("_codecs", "encode")}) | {
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
    written = call.func.pair in _FOLDABLE and all(map(is_short, call.args))
    return written or numpy_arrays.scalar(call) is not None


def _is_short(value: Value) -> bool:
    """Return whether it is a few plain values, which are faster to check than to look up."""
    if type(value) is Dict:
        return len(value.items) <= FEW and PLAIN.issuperset([type(v) for _, v in value.items])
    return is_short(value)


_VALUES = "values"
_TOLD = "characters of names"
_LINE = 64  # values that fit into a line


class WalkBudget:
    """The remaining cost of the walk through one pickle's tree, in proportion to its size.

    Methods deduct from it and raise Unsupported when it is used up.
    """

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
            raise Unsupported(f"a name is longer than {NAME:,} characters", where=self.path)
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
        return 1 + min(len(value), _LINE) // Prices.formatted
    return 1 + _LINE // Prices.formatted


def _tensor_cost(tensor: Tensor | CompositeTensor) -> int:
    """Return the cost of a tensor, in plain ones of few dimensions."""
    if isinstance(tensor, CompositeTensor):
        return 1 + sum(map(_tensor_cost, tensor.parts))
    return 1 + len(tensor.shape) // Prices.dimensions


def fill(
    checkpoint: Checkpoint,
    decoded: DecodedPickle,
    storages: StorageTable,
    prefix: str = "",
    classes: ScriptClasses | None = None,
) -> None:
    """Add the contents of a pickle to `checkpoint`, under names that begin with `prefix`.

    `classes` are those of a TorchScript archive. A tensor that cannot be understood is listed as
    unreadable. Raises one error that lists them all if no other tensor is left, and Unsupported if
    the pickle expands to far more than its bytes.
    """
    budget = WalkBudget(checkpoint.path, decoded.end)
    walk = _TreeWalk(checkpoint, storages, budget, classes or {})
    try:
        walk.visit(prefix, decoded.value, 0)
    except Ambiguous as error:
        raise error.at(checkpoint.path) from None
    if walk.errors and not checkpoint.is_readable:
        raise _together(checkpoint.path, walk.errors)
    walk.report()
    _check_expansion(checkpoint, budget)


def _check_expansion(checkpoint: Checkpoint, budget: WalkBudget) -> None:
    """Raise Unsupported if tensors claim far more bytes than the file has (strides of 0).

    Also if the names of identical tensors are too long in total.
    """
    parts = [part for exotic in checkpoint.exotic.values() for part in exotic.parts]
    views = {part.view: part for part in parts}
    for tensor in checkpoint.tensors.values():
        first = views.setdefault(tensor.view, tensor)
        if first is not tensor:
            budget.tie(first.name)
    stored = {id(tensor.storage): tensor.storage.nbytes for tensor in views.values()}
    allowed = EXPANSION * sum(stored.values()) + EXPANSION_FLOOR
    claimed = sum(tensor.nbytes for tensor in views.values())
    if claimed > allowed:
        worst = sorted(views.values(), key=lambda tensor: tensor.nbytes, reverse=True)[:_WORST]
        names = ", ".join(f"{printable(t.name)} ({t.nbytes:,} bytes)" for t in worst)
        raise Unsupported(
            f"tensors of {claimed:,} bytes over storages of {sum(stored.values()):,}: {names}",
            where=checkpoint.path,
        )


_WORST = 3


def record_globals(checkpoint: Checkpoint, names: Iterable[tuple[str, str]]) -> None:
    """Add the names that a pickle mentions to `checkpoint`, and findings for foreign ones."""
    pairs = {".".join(pair): pair for pair in names}
    checkpoint.globals = list(dict.fromkeys([*checkpoint.globals, *pairs]))
    strange = foreign(list(pairs))
    if not strange:
        return
    from cgpt_convert.pickles.torch_calls.dangerous import is_dangerous

    dangerous = {name for name in strange if is_dangerous(*pairs[name])}
    if dangerous:
        detail = f"names {_listed([name for name in strange if name in dangerous])}"
        checkpoint.findings.append(Finding(findings.DANGEROUS, detail))
    if len(dangerous) < len(strange):
        foreign_names = ", ".join(printable(name) for name in strange if name not in dangerous)
        checkpoint.findings.append(Finding(findings.FOREIGN, foreign_names))


def foreign(names: list[str]) -> list[str]:
    """Return the names that `scan` knows neither, except classes of a TorchScript archive."""
    if KNOWN.issuperset(names):  # as in most files, for which the longer list is not built
        return []
    from cgpt_convert.pickles.trace.signatures import SIGNATURES

    return [name for name in names if name not in SIGNATURES and not is_script_class(name)]


class _TreeWalk:
    def __init__(
        self,
        checkpoint: Checkpoint,
        storages: StorageTable,
        budget: WalkBudget,
        classes: ScriptClasses,
    ) -> None:
        self.checkpoint = checkpoint
        self.classes = classes
        self.storages = storages
        self.budget = budget
        self.folding = CollapsedContainers(budget.nodes)
        self.errors: list[tuple[str, CgptError]] = []
        self.cycles: list[str] = []
        self.collisions: dict[str, None] = {}
        self.doubted = 0  # duplicate keys on the current path
        self.seen: set[int] = set()  # ids of all visited containers
        self.path: set[int] = set()  # ids of the containers on the current path
        self.dicts = [""]  # paths of the dicts among them
        self.objects = 0  # objects on the current path; their dicts are not containers
        self.extra = ""  # the kind of tensors that state_dict() omits

    def visit(self, name: str, value: Value, depth: int, *, tensors_only: bool = False) -> None:
        """Add `value` under `name`; inside a foreign object, add tensors only."""
        self.budget.visit(name)
        pairs = children(value)
        self.count_again(value, pairs)
        if pairs is None:
            self.take(name, value, depth, tensors_only=tensors_only)
            return
        if id(value) in self.path:
            self.cycles.append(name)
            return
        named = has_keys(value) and not self.objects
        if named:
            self.checkpoint.containers.setdefault(name, self.dicts[-1])
        if self.folding.folds(value, pairs):
            self.enter(CollapsedContainer(name, value), tensors_only=tensors_only)
            return
        if named:
            self.dicts.append(name)
        if is_script_object(value):
            groups = script_members(value, pairs, self.classes)
            self.object(name, value, groups, depth, tensors_only=tensors_only)
        else:
            self.inside(name, value, pairs, depth, tensors_only=tensors_only)
        if named:
            self.dicts.pop()
        if isinstance(value, Call) and value.state is not None and not tensors_only:
            self.state_of_container(name, value.state)

    def count_again(self, value: Value, pairs: Pairs | None) -> None:
        """Limit the work caused by shared values, including the inspection of their elements."""
        if type(value) not in _HOLDING:
            return
        if id(value) in self.seen:
            self.budget.again(1 + _looked_at(value, pairs))
        self.seen.add(id(value))

    def inside(
        self, name: str, value: Value, pairs: Pairs, depth: int, *, tensors_only: bool
    ) -> None:
        """Visit the contents of `value`, unless the walk is inside it already."""
        if id(value) in self.path:
            return
        if depth > NESTING:
            raise Unsupported(
                f"values are nested more than {NESTING} levels deep", where=self.checkpoint.path
            )
        self.budget.fits(len(pairs))
        self.path.add(id(value))
        twice: frozenset[Value] = frozenset()
        if has_keys(value):
            pairs, twice = distinct(pairs)
        for key, child in pairs:
            path = _join(name, key)
            if not is_short(child):
                doubted = comes_twice(key, twice)
                self.doubted += doubted
                self.visit(path, child, depth + 1, tensors_only=tensors_only)
                self.doubted -= doubted
                continue
            self.budget.visit(path, text_cost(child))
            if not tensors_only and (child or type(child) in PLAIN):  # empty lists have no values
                self.checkpoint.others.append(NonTensorValue(path, child))
        self.path.discard(id(value))

    def object(
        self, name: str, value: Call, groups: Groups, depth: int, *, tensors_only: bool
    ) -> None:
        """Visit the contents of an object. The object may be a root, its contents may not."""
        outermost = not self.objects
        before = self.count()
        if outermost:
            self.dicts.append(_join(name, "module") if is_data_parallel(value) else name)
        self.objects += 1
        for extra, pairs in groups:
            outer, self.extra = self.extra, self.extra or extra
            self.inside(name, value, pairs, depth, tensors_only=tensors_only)
            self.extra = outer
        self.objects -= 1
        if outermost:
            inner = self.dicts.pop()
            if self.count() > before:
                self.checkpoint.containers.setdefault(name, self.dicts[-1])
                if inner != name:
                    self.checkpoint.containers.setdefault(inner, name)

    def count(self) -> int:
        """Return the number of tensors so far."""
        return len(self.checkpoint.tensors) + len(self.checkpoint.exotic)

    def state_of_container(self, name: str, state: Value) -> None:
        """Add the state of a dict, such as torch's `_metadata` with module versions."""
        pairs = state.items if isinstance(state, Dict) else [("__state__", state)]
        for key, value in pairs:
            path = _join(name, key)
            self.budget.visit(path, text_cost(value))
            self.checkpoint.others.append(NonTensorValue(path, value))

    def take(self, name: str, value: Value, depth: int, *, tensors_only: bool) -> None:
        """Add one value that is not a container."""
        if isinstance(value, Call):
            try:
                tensor, states = rebuild(value, self.storages)
            except Ambiguous:
                raise
            except CgptError as error:
                self.errors.append((name, error))
                if len(self.errors) == _LISTED:
                    raise _together(self.checkpoint.path, self.errors) from None
                self.add(name, unreadable(name, error))
                return
            if tensor is not None:
                self.add(name, tensor)
                if states:
                    pairs = [pair for pair in attached(states) if pair[0] != DATA]
                    extra = TENSOR_ATTRIBUTE if isinstance(tensor, Tensor) else ""
                    groups: Groups = [(extra, pairs)]
                    self.object(name, value, groups, depth, tensors_only=tensors_only)
                return
            number = numpy_arrays.scalar(value)
            if number is not None:
                value = number
        self.enter(NonTensorValue(name, value), tensors_only=tensors_only)
        if isinstance(value, Call):  # the tensors in an object of an unknown class
            self.object(name, value, members(value), depth, tensors_only=True)

    def enter(self, leaf: NonTensorValue, *, tensors_only: bool) -> None:
        """Add a value that is not a tensor, and deduct the rest of its cost."""
        if not tensors_only:
            if more := text_cost(leaf.value) - 1:
                self.budget.visit("", more)
            self.checkpoint.others.append(leaf)

    def add(self, name: str, tensor: Tensor | CompositeTensor) -> None:
        """Add the tensor under its name; a second one of that name is a finding."""
        checkpoint = self.checkpoint
        self.budget.tensor(tensor)
        if self.doubted:
            self.collisions.setdefault(name)
        if name in checkpoint.tensors or name in checkpoint.exotic:
            self.collisions.setdefault(name)
            return
        checkpoint.within[name] = self.dicts[-1]
        if self.extra:
            checkpoint.extras[name] = self.extra
        if isinstance(tensor, Tensor):
            checkpoint.tensors[name] = tensor.renamed(name)
        else:
            parts = tuple(part.renamed(f"{name}.{part.name}") for part in tensor.parts)
            checkpoint.exotic[name] = tensor._replace(name=name, parts=parts)

    def report(self) -> None:
        """Add one finding for each kind of anomaly in the values."""
        self.checkpoint.collisions.update(self.collisions)
        for rule, names in (
            (findings.COLLISION, list(self.collisions)),
            (findings.CYCLE, self.cycles),
            (findings.UNREADABLE, [name for name, _ in self.errors]),
        ):
            if names:
                self.checkpoint.findings.append(Finding(rule, _listed(names)))


def _looked_at(value: Value, pairs: Pairs | None) -> int:
    """Return how many elements `children` inspected; it takes those of a Dict as they are."""
    if isinstance(value, list | tuple):
        return len(value)
    if isinstance(value, Set):
        return len(value.members)
    return len(pairs or ()) if isinstance(value, Call) else 0


_HOLDING = frozenset({List, tuple, Dict, Set, Call})


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more


def _join(name: str, key: Value) -> str:
    part = key if type(key) is str else str(key) if type(key) is int else text(key)
    return f"{name}.{part}" if name and part else name or part


_SHOWN = 20
_LISTED = 5000  # listing more errors is not useful


def _together(path: str, errors: list[tuple[str, CgptError]]) -> CgptError:
    """Return one error that names every tensor that failed; Malformed if any of them is."""
    kind = next((type(e) for _, e in errors if isinstance(e, Malformed)), type(errors[0][1]))
    lines = [f"{printable(name)}: {str(error).splitlines()[0]}" for name, error in errors[:_SHOWN]]
    if len(errors) == 1:
        return kind(lines[0], where=path)
    if len(errors) > _SHOWN:
        lines.append(f"and {len(errors) - _SHOWN} more")
    return kind(f"{len(errors)} tensors cannot be read:\n  " + "\n  ".join(lines), where=path)

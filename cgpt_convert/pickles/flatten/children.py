"""Names and values inside a node of an inert tree: containers, objects, attributes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cgpt_convert.pickles.nodes import Call, Dict, Global, List, PersistentId, Set, Value, text
from cgpt_convert.pickles.torch_calls.argument_checks import Ambiguous, are_settled

Pairs = Sequence[tuple[Value, Value]]

PLAIN = frozenset({bool, int, float, str, bytes, type(None)})  # types of values without children

Groups = list[tuple[str, Pairs]]  # contents of an object, and why state_dict() omits them

# torch.nn.Module keeps its members in these; state_dict() leaves them out of the names, so do we
_PARAMETERS, _BUFFERS, _MODULES = _MODULE_SLOTS = ("_parameters", "_buffers", "_modules")
_NOT_PERSISTENT = "_non_persistent_buffers_set"
NON_PERSISTENT, ATTRIBUTE = "a non-persistent buffer", "an attribute of a module"
TENSOR_ATTRIBUTE = "an attribute of a tensor"
_DATA_PARALLEL = (
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.parallel.distributed.DistributedDataParallel",
)
# class of a TorchScript archive -> names of its parameters and buffers; None if it is no module
ScriptClasses = Mapping[str, "frozenset[str] | None"]


def is_short(value: Value) -> bool:
    """Return whether it is a plain value, or a short tuple or list of them, cheap to revisit."""
    kind = type(value)
    if kind is tuple or kind is List:
        return len(value) <= FEW and PLAIN.issuperset(map(type, value))
    return kind in PLAIN


FEW = 16


def children(value: Value) -> Pairs | None:
    """Return the keys and values of a container; None for a leaf, a tensor or a foreign object."""
    kind = type(value)
    if kind is tuple or kind is List:
        return _elements(value)
    if isinstance(value, Dict):
        return value.items
    if isinstance(value, Set):
        return _elements(value.members)
    if isinstance(value, Call) and isinstance(value.func, Global):
        return _call_children(value.func.dotted, value)
    return None


def _elements(values: list[Value] | tuple[Value, ...]) -> Pairs | None:
    """Return the values by number; None if all are plain, which makes one leaf (indices, say)."""
    plain = values and PLAIN.issuperset(map(type, values))
    return None if plain else list(enumerate(values))


def distinct(pairs: Pairs) -> tuple[Pairs, frozenset[Value]]:
    """Return the pairs with each key once, as a dict has them, and the keys that came twice.

    A dict keeps the first of equal keys and the last of their values; True, 1 and 1.0 are equal.
    """
    keys = [key for key, _ in pairs]
    if not _TEXT.issuperset(map(type, keys)):
        keys = list(map(_comparable, keys))
    if len(set(keys)) == len(pairs):
        return pairs, frozenset()
    first: dict[Value, Value] = {}
    for key, (original, _) in zip(keys, pairs, strict=True):
        first.setdefault(key, original)
    last = {key: value for key, (_, value) in zip(keys, pairs, strict=True)}
    twice = frozenset(key for key, count in Counter(keys).items() if count > 1)
    return [(first[key], value) for key, value in last.items()], twice


def comes_twice(key: Value, twice: frozenset[Value]) -> bool:
    """Return whether `distinct` found the key more than once."""
    return bool(twice) and _comparable(key) in twice


def _comparable(key: Value) -> Value:
    """Return a value that is equal for equal keys and is compared quickly."""
    if type(key) in PLAIN:
        return key
    if type(key) is tuple and len(key) <= FEW and PLAIN.issuperset(map(type, key)):
        return key
    return b"\0" + text(key).encode("utf-8", "surrogatepass")  # cannot equal a key of a weight file


_TEXT = frozenset({str})
_SETS = frozenset(
    f"{mod}.{name}" for mod in ("builtins", "__builtin__") for name in ("set", "frozenset")
)
_COUNTER = "collections.Counter"
_DICTS = frozenset({"collections.OrderedDict", "collections.defaultdict", _COUNTER})


def has_keys(value: Value) -> bool:
    """Return whether it is a `dict` or a dict type of `collections`, whose keys are unique."""
    named = isinstance(value, Call) and isinstance(value.func, Global)
    return isinstance(value, Dict) or (named and value.func.dotted in _DICTS)


def _call_children(name: str, call: Call) -> Pairs | None:
    args = call.args if isinstance(call.args, tuple) else ()
    if name in _DICTS:
        return [*_given(name, call, args), *call.items]
    if name in _SETS:
        return [*_given_to_set(name, call, args), *enumerate(call.elements)]
    if name in _SCRIPT_HELPERS:
        return [("", value) for value in args[:1]] + list(enumerate(call.elements))
    return list(pairs_of(call)) if is_script_class(name) else None


def _given(name: str, call: Call, args: tuple[Value, ...]) -> Pairs:
    """Return the items that a dict is made from, without the factory of a defaultdict.

    Raises Ambiguous if they are changed after the call, which uses their values at that time.
    """
    if not args:
        return ()
    given = args[-1]
    pairs = isinstance(given, List) and all(map(_is_pair, given))  # protocols 0 and 1
    parts = (given, *given) if pairs else (given,)
    if not all(are_settled((part,), call.position) for part in parts):
        raise Ambiguous(f"what a {name} is made of is changed later: {text(call)}")
    if isinstance(given, Dict):
        return given.items
    if name == _COUNTER and isinstance(given, list | tuple):
        return [(key, 1) for key in given]  # a Counter counts them
    if pairs:
        return [(pair[0], pair[1]) for pair in given]
    return [("", value) for value in args if not isinstance(value, Global)]


def _given_to_set(name: str, call: Call, args: tuple[Value, ...]) -> Pairs:
    """Return what a set is made from: of a dict, the keys. Raises Ambiguous as `_given` does."""
    given = args[:1]
    if not are_settled(given, call.position):
        raise Ambiguous(f"what a {name} is made of is changed later: {text(call)}")
    if given and has_keys(given[0]):
        return [("", key) for key, _ in children(given[0]) or ()]
    return [("", value) for value in given]


def _is_pair(value: Value) -> bool:
    return isinstance(value, list | tuple) and len(value) == len(("key", "value"))


def pairs_of(call: Call) -> Iterator[tuple[Value, Value]]:
    """Yield the contents of an object: its arguments, attributes, items and elements."""
    if isinstance(call.args, tuple):
        for index, value in enumerate(call.args):
            yield f"args.{index}", value
    if isinstance(call.kwargs, Dict):
        yield from call.kwargs.items
    yield from of_state(call.state)
    yield from call.items
    yield from enumerate(call.elements)


def members(call: Call) -> Groups:
    """Return the contents of an object; for a module, separate what `state_dict()` omits."""
    state = _module_state(call)
    if state is None:
        return [("", list(pairs_of(call)))]
    own = distinct(children(state) or ())[0]
    slots = {key: value for key, value in own if type(key) is str}
    names = _set_members(slots.get(_NOT_PERSISTENT))
    buffers = _slot(slots[_BUFFERS])
    weights = [
        *_slot(slots[_PARAMETERS]),
        *(pair for pair in buffers if not _is_in(pair[0], names)),
        *_slot(slots[_MODULES]),
    ]
    fleeting = [pair for pair in buffers if _is_in(pair[0], names)]
    rest = [pair for pair in own if pair[0] not in (*_MODULE_SLOTS, _NOT_PERSISTENT)]
    states = call.state if isinstance(call.state, tuple) else (call.state,)
    args = call.args if isinstance(call.args, tuple) else ()
    rest += [("", part) for part in states if part is not state and part is not None]
    rest += [(f"args.{at}", part) for at, part in enumerate(args) if part is not state]
    rest += [*(call.kwargs.items if isinstance(call.kwargs, Dict) else ()), *call.items]
    rest += enumerate(call.elements)
    return [("", weights), (NON_PERSISTENT, fleeting), (ATTRIBUTE, rest)]


def script_members(call: Call, pairs: Pairs, classes: ScriptClasses) -> Groups:
    """Return the same for a TorchScript object with the attributes `pairs`."""
    names = classes.get(_dotted(call), _ALL)
    if names is _ALL:
        return [("", pairs)]
    weights: list[tuple[Value, Value]] = []
    rest: list[tuple[Value, Value]] = []
    for key, value in pairs:
        is_module = _is_script_module(value, classes)
        is_weight = names is not None and (_is_in(key, names) or is_module)
        (weights if is_weight else rest).append((key, value))
    return [("", weights), (ATTRIBUTE, rest)]


def _is_in(key: Value, names: frozenset[str]) -> bool:
    return type(key) is str and key in names


_ALL = frozenset({""})  # for a class whose code is missing


def _is_script_module(value: Value, classes: ScriptClasses) -> bool:
    """Return whether it is a module, or packed weights, which are modules without code."""
    name = _dotted(value) if isinstance(value, Call) else ""
    return name.startswith("__torch__.") and classes.get(name, _ALL) is not None


def is_script_object(value: Value) -> bool:
    """Return whether it is an object of a class of a TorchScript archive."""
    return isinstance(value, Call) and _dotted(value).startswith("__torch__.")


def is_data_parallel(call: Call) -> bool:
    """Return whether it is one of torch's wrappers around the module `module`."""
    return _dotted(call) in _DATA_PARALLEL


def _dotted(call: Call) -> str:
    """Return the dotted class name of an object, if the call that makes it names one.

    The legacy format wraps the classes of modules: `("module", class, file, source)`.
    """
    func = call.func
    first = call.args[0] if isinstance(call.args, tuple) and call.args else None
    if isinstance(func, Global) and func.dotted == "copyreg._reconstructor":
        func = first
    if isinstance(func, PersistentId) and isinstance(func.value, tuple):
        func = func.value[1] if func.value[:1] == ("module",) and len(func.value) > 1 else None
    return func.dotted if isinstance(func, Global) else ""


def _module_state(call: Call) -> Value:
    """Return the attribute dict of a `torch.nn.Module`; None for another object.

    `torch.fx.GraphModule` has it among its arguments.
    """
    states = call.state if isinstance(call.state, tuple) else (call.state,)
    for state in (*states, *(call.args if isinstance(call.args, tuple) else ())):
        if has_keys(state):
            keys = {key for key, _ in children(state) or () if type(key) is str}
            if keys.issuperset(_MODULE_SLOTS):
                return state
    return None


def _slot(value: Value) -> Pairs:
    """Return the members of a module of one kind."""
    pairs = children(value)
    if pairs is None:
        return [("", value)]
    return distinct(pairs)[0] if has_keys(value) else pairs


def _set_members(value: Value) -> frozenset[str]:
    """Return the strings in a set."""
    members: Iterable[Value] = ()
    if isinstance(value, Set):
        members = value.members
    elif isinstance(value, Call) and _dotted(value) in _SETS and isinstance(value.args, tuple):
        members = [each for part in value.args if isinstance(part, list) for each in part]
    return frozenset(name for name in members if type(name) is str)


def of_state(state: Value) -> Iterator[tuple[Value, Value]]:
    """Yield an object's attributes, from the state that it was saved with.

    A class with `__slots__` has a tuple of dicts. Parts of other tuples that are not dicts are
    numbered, like a packed weight in TorchScript: (weight, bias). A single list or tuple among
    plain values has no number of its own; its elements are numbered.
    """
    states = state if isinstance(state, tuple) else (state,)
    complex_parts = [part for part in states if type(part) not in PLAIN]
    alone = len(complex_parts) == 1 and type(complex_parts[0]) in (List, tuple)
    numbered = len(states) > 1 and not alone
    for index, part in enumerate(states):
        if has_keys(part):
            for key, value in distinct(children(part) or ())[0]:
                yield ("" if key in _MODULE_SLOTS else key), value
        elif part is not None:
            yield (index if numbered else ""), part


def is_script_class(name: str) -> bool:
    """Return whether it is a class in a TorchScript archive, or a helper of its pickler."""
    return name.startswith("__torch__.") or name in _SCRIPT_HELPERS


# torch/csrc/jit/serialization/pickler.cpp: lists and tagged values wrap what they hold
_SCRIPT_HELPERS = frozenset(
    f"torch.jit._pickle.{name}"
    for name in (
        "build_boollist",
        "build_doublelist",
        "build_intlist",
        "build_tensorlist",
        "restore_type_tag",
    )
)

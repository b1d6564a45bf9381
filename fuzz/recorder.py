"""Record what an unpickler imports, calls and changes, and decide whether torch writes that.

The decision does not use the scanner's code. It is made from the live objects: which name a
function was imported by, of which types its arguments are, what a state or an item is set on.
"""

from __future__ import annotations

import collections
import importlib.util
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NoReturn, cast

import numpy as np
import torch
from torch._weights_only_unpickler import _get_allowed_globals

DEPTH = 6  # of values that are examined
ITEMS = 2000  # of one container that are examined

_BUILTINS = (
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list"),
    *("long", "object", "range", "set", "slice", "str", "tuple", "xrange"),
)
_QUANTIZED = ("QInt8", "QInt32", "QUInt8", "QUInt4x2", "QUInt2x4")
_NUMPY = (*("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer"),)
_RANDOM = (*("__generator_ctor", "__bit_generator_ctor", "__randomstate_ctor"),)
_BIT_GENERATORS = (
    *("_mt19937.MT19937", "_pcg64.PCG64", "_pcg64.PCG64DXSM", "_philox.Philox", "_sfc64.SFC64"),
    "bit_generator.__pyx_unpickle_SeedSequence",
    "bit_generator.SeedSequence",
)

# names that torch's weights_only loader takes, NumPy's arrays and generators, Python's containers
NAMES = frozenset(
    set(_get_allowed_globals())
    | {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS}
    | {f"numpy.{core}.{name}" for core in ("core", "_core") for name in _NUMPY}
    | {f"numpy.random._pickle.{name}" for name in _RANDOM}
    | {f"numpy.random.{name}" for name in _BIT_GENERATORS}
    | {f"torch.{kind}Tensor" for kind in (*_QUANTIZED, "ComplexDouble", "ComplexFloat")}
    | {f"torch.cuda.{kind}Storage" for kind in _QUANTIZED}
    | {f"torch.{kind}" for kind in ("cdouble", "cfloat", "chalf", "double", "float", "half")}
    | {f"torch.{kind}" for kind in ("int", "long", "short")}
    | {f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")}
    | {"torch.jit._pickle.build_tensor_from_id", "torch.jit._pickle.restore_type_tag"}
    | {
        "collections.defaultdict",
        "numpy.dtype",
        "numpy.ndarray",
        "torch._tensor.Tensor",
        "torch._tensor._rebuild_from_type",
        "torch._utils._rebuild_xla_tensor",
        "torch.autograd.variable.Variable",
        "torch.cuda.sparse.BoolTensor",
        "torch.nn.parameter.Buffer",
        "torch.sparse.BoolTensor",
        "torch.tensor._rebuild_from_type",
        "torch.tensor._rebuild_from_type_v2",
    }
)

_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, torch.Size),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.qscheme),
    *(torch.TypedStorage, torch.UntypedStorage, np.dtype),
)
_DICTS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_SEQUENCES = (list, tuple, set, frozenset)
_WITH_STATE = (
    *(torch.Tensor, torch.nn.Parameter, torch.nn.Buffer, np.ndarray, np.dtype),
    *(collections.OrderedDict, np.random.Generator, np.random.RandomState),
    *(np.random.BitGenerator, np.random.SeedSequence),
)
# the functions that take a type or a function, and the positions where they take it
_TYPE_AT = {
    "collections.defaultdict": (0,),
    "numpy._core.multiarray._reconstruct": (0,),
    "numpy.core.multiarray._reconstruct": (0,),
    "torch._tensor._rebuild_from_type": (0, 1),
    "torch._tensor._rebuild_from_type_v2": (0, 1),
    "torch.tensor._rebuild_from_type": (0, 1),
    "torch.tensor._rebuild_from_type_v2": (0, 1),
    "torch._utils._rebuild_wrapper_subclass": (0,),
    "numpy.random._pickle.__bit_generator_ctor": (0,),
    "numpy.random._pickle.__generator_ctor": (0, 1),
    "numpy.random._pickle.__randomstate_ctor": (0, 1),
}


class Stopped(BaseException):
    """Raised where a loader is about to do what no weight file needs."""


class Events:
    """What a loader did beyond reading weights, in order."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def add(self, event: str) -> None:
        """Record an event."""
        self.seen.append(event[:300])

    def stop(self, event: str) -> NoReturn:
        """Record an event and end the loader before it happens."""
        self.add(event)
        raise Stopped(event)


def is_known(module: object, name: object) -> bool:
    """Return whether weight files need this name, as it is written in the pickle."""
    return type(name) is str and "." not in name and f"{module}.{name}" in NAMES


def is_found(module: object) -> bool:
    """Return whether importing the module runs anything: it, or its package, is installed."""
    if type(module) is not str:
        return False
    root = module.partition(".")[0]
    try:
        if root not in sys.modules:
            return importlib.util.find_spec(root) is not None
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError, UnicodeError):
        return False


def is_data(value: object, depth: int = DEPTH) -> bool:
    """Return whether the value consists of data only: no type, function or foreign object."""
    kind = type(value)
    if not depth or kind in _PLAIN or isinstance(value, np.generic | torch.Tensor):
        return True
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject or is_data(value.reshape(-1)[:ITEMS].tolist(), depth - 1)
    if kind in _DICTS:
        items = cast("dict[object, object]", value)
        return _are_data([*items.keys(), *items.values()], depth)
    if kind in _SEQUENCES:
        return _are_data(cast("Iterable[object]", value), depth)
    return isinstance(value, _WITH_STATE)


def _are_data(values: Iterable[object], depth: int) -> bool:
    return all(is_data(value, depth - 1) for value, _ in zip(values, range(ITEMS), strict=False))


class Judge:
    """Decide about each action of an unpickler, whose imports it is told of."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.names: dict[int, str] = {}
        self.kept: list[object] = []  # so that no id is given twice

    def imported(self, module: str, name: str, value: object) -> object:
        """Note by which name an object was imported."""
        self.kept.append(value)
        self.names[id(value)] = f"{module}.{name}"
        return value

    def called(self, func: object, args: object, kwargs: object = None) -> None:
        """Stop the loader unless torch, NumPy or Python write this call."""
        if not callable(func):
            return
        name = self.names.get(id(func))
        if name is None:
            self.events.stop(f"call of a computed {type(func).__name__}")
        if kwargs:
            self.events.stop(f"call of {name} with keyword arguments")
        if not isinstance(args, tuple):
            return
        types_at = _TYPE_AT.get(name, ())
        for at, value in enumerate(args):
            if at in types_at and self._is_known_type(value):
                continue
            if not is_data(value):
                self.events.stop(f"call of {name} with argument {at} a {_kind(value)}")
        if name.startswith("numpy.") and not all(map(_is_raw, args)):
            self.events.stop(f"call of {name} over an object array")
        if "_rebuild_from_type" in name and args and not self._rebuilds(args[0]):
            self.events.stop(f"call of {name} with a {_kind(args[0])} to call")

    def made(self, cls: object, args: object, kwargs: object) -> None:
        """Do the same for what makes an object without `__init__`; a function makes none."""
        if hasattr(cls, "__new__") and isinstance(cls, type):
            self.called(cls, args, kwargs)

    def _is_known_type(self, value: object) -> bool:
        known = id(value) in self.names and isinstance(value, type)
        return value is None or known or self._rebuilds(value)

    def _rebuilds(self, value: object) -> bool:
        name = self.names.get(id(value), "")
        return isinstance(value, types.FunctionType) and "._rebuild_" in name

    def built(self, target: object, state: object) -> None:
        """Stop the loader unless the object is of a type that is saved with a state of data."""
        parts = state if type(state) is tuple and len(state) == 2 else (state,)
        if not any(hasattr(target, name) for name in ("__setstate__", "__dict__", "__slots__")):
            return  # the loader fails
        if not isinstance(target, _WITH_STATE):
            self.events.stop(f"BUILD on a {_kind(target)}")
        if not is_data(state):
            self.events.stop(f"BUILD on a {_kind(target)} with a state that is not data")
        for part in parts:
            if isinstance(part, dict) and not isinstance(target, np.random.BitGenerator):
                for key in part:
                    if key in _CALLED or callable(getattr(type(target), str(key), None)):
                        self.events.stop(f"BUILD on a {_kind(target)} replaces method {key}")

    def extended(self, target: object, what: str, allowed: tuple[type, ...]) -> None:
        """Stop the loader if the object takes this and is not exactly of one of the types."""
        if type(target) not in allowed and any(hasattr(target, name) for name in _METHODS[what]):
            self.events.stop(f"{what} on a {_kind(target)}")


_CALLED = ("append", "extend", "add", "__setitem__", "__setstate__")  # by unpicklers
_METHODS = {
    "APPEND": ("append",),
    "APPENDS": ("append", "extend"),
    "SETITEM": ("__setitem__",),
    "SETITEMS": ("__setitem__",),
    "ADDITEMS": ("add",),
}


def _is_raw(value: object) -> bool:
    return not (isinstance(value, np.ndarray) and value.dtype.hasobject)


def _kind(value: object) -> str:
    return f"{'type ' * isinstance(value, type)}{getattr(value, '__name__', type(value).__name__)}"


def recording(events: Events, *, python2: bool = False) -> Any:
    """Return Python's unpickler, made to ask a judge before it acts.

    With `python2`, memo keys are texts, as in Python 2.7: `p07` and `g07` agree, `p07` and `g7`
    do not.
    """
    base = pickle._Unpickler  # noqa: SLF001

    class Recorder(base):  # type: ignore[misc, valid-type]
        dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(base.dispatch)

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.judge = Judge(events)
            if python2:
                self.memo = _TextMemo()

        def find_class(self, module: str, name: str) -> Any:
            value = super().find_class(module, name)
            return self.judge.imported(module, name, value)

        def _instantiate(self, klass: Any, args: Any) -> None:
            self.judge.called(klass, tuple(args))
            super()._instantiate(klass, args)

    def before(code: bytes, ask: Callable[[Any], None]) -> None:
        plain = base.dispatch[code[0]]

        def asked(self: Any) -> None:
            ask(self)
            plain(self)

        Recorder.dispatch[code[0]] = asked

    def marked(self: Any) -> Any:
        return self.metastack[-1][-1]

    lists: tuple[type, ...] = (list,)
    before(b"R", lambda self: self.judge.called(self.stack[-2], self.stack[-1]))
    before(b"\x81", lambda self: self.judge.made(self.stack[-2], self.stack[-1], None))
    before(b"\x92", lambda self: self.judge.made(*self.stack[-3:]))
    before(b"b", lambda self: self.judge.built(self.stack[-2], self.stack[-1]))
    before(b"a", lambda self: self.judge.extended(self.stack[-2], "APPEND", lists))
    before(b"e", lambda self: self.judge.extended(marked(self), "APPENDS", lists))
    before(b"s", lambda self: self.judge.extended(self.stack[-3], "SETITEM", (*_DICTS, list)))
    before(b"u", lambda self: self.judge.extended(marked(self), "SETITEMS", (*_DICTS, list)))
    before(b"\x90", lambda self: self.judge.extended(marked(self), "ADDITEMS", (set,)))
    if python2:
        Recorder.dispatch[b"p"[0]] = _put_text
        Recorder.dispatch[b"g"[0]] = _get_text
    return Recorder


class _TextMemo(dict[Any, Any]):
    """A memo whose numbers are kept as their texts."""

    def __getitem__(self, key: bytes | int) -> object:
        return super().__getitem__(key if isinstance(key, bytes) else b"%d" % key)

    def __setitem__(self, key: bytes | int, value: object) -> None:
        super().__setitem__(key if isinstance(key, bytes) else b"%d" % key, value)


def _put_text(self: Any) -> None:
    self.memo[self.readline()[:-1]] = self.stack[-1]


def _get_text(self: Any) -> None:
    self.append(self.memo[self.readline()[:-1]])


# -- what Python itself reports, whatever the loader

_ALWAYS = {
    *("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("os.forkpty", "socket.connect", "socket.bind", "urllib.Request", "pty.spawn"),
    *("ctypes.dlopen", "os.kill"),
}
_OURS = (sys.prefix, sys.base_prefix, "<frozen ", "/usr/lib/python")


_SYMBOLS = "'[su][0-9]+'|Symbol|Integer|Float|Rational|Function|Max|Min|Mod|FloorDiv"
_ASSUMED = "positive|integer|nonnegative|True"
_ARITHMETIC = re.compile(
    rf"from sympy import \*|[A-Za-z_]\w*|(?:\s|[\d.,()*+/<>=-]|{_SYMBOLS}|{_ASSUMED})*"
)


def is_arithmetic(source: object) -> bool:
    """Return whether the source is what sympy makes of a size in a `.pt2` file, such as 2*s0."""
    return isinstance(source, str | bytes) and bool(_ARITHMETIC.fullmatch(_text(source)))


_CODE = re.compile(r"__|import|eval|exec|open|getattr|lambda|['\"]")


def is_graph(source: object) -> bool:
    """Return whether the source is what torch.fx makes of a graph: calls of operators only."""
    return isinstance(source, str | bytes) and not _CODE.search(_text(source))


def _text(source: str | bytes) -> str:
    return source.decode("latin-1") if isinstance(source, bytes) else source


class Audit:
    """A hook for `sys.addaudithook`, which nothing can remove; it acts while `events` is set."""

    def __init__(self, scratch: str) -> None:
        self.scratch = scratch
        self.events: Events | None = None
        self.compiled: object = None  # the source that was compiled last

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Stop the loader if the event is none of those that reading weights needs."""
        events = self.events
        if events is None:
            return
        if event == "pickle.find_class":
            if not is_known(*args[:2]) and is_found(args[0]):
                self._stop(f"find_class {args[0]!r} {args[1]!r}")
        elif event in _ALWAYS:
            self._stop(f"{event} {args!r}")
        elif event == "compile":
            self.compiled = args[0]
        elif event == "exec":
            file = str(getattr(args[0], "co_filename", ""))
            graph = file.startswith("<eval_with_key>") and is_graph(self.compiled)
            if not (file.startswith(_OURS) or graph or is_arithmetic(self.compiled)):
                self._stop(f"exec {args[0]!r} of {self.compiled!r}")
        elif event == "open" and self._writes(args) and not str(args[0]).startswith(self.scratch):
            self._stop(f"open {args!r}")

    def _stop(self, event: str) -> NoReturn:
        events, self.events = self.events, None  # what the message does is not recorded
        assert events is not None
        try:
            events.stop(event)
        finally:
            self.events = events

    @staticmethod
    def _writes(args: tuple[Any, ...]) -> bool:
        mode, flags = args[1], args[2] if len(args) > 2 else 0
        if isinstance(mode, str):
            return not {"w", "a", "x", "+"}.isdisjoint(mode)
        return bool(flags & 3)  # O_WRONLY or O_RDWR

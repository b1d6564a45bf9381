"""Recognition of NumPy arrays and scalars inside a pickle (numpy/_core/multiarray)."""

from __future__ import annotations

import re
import struct

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.limits import RANK
from cgpt_convert.pickles.nodes import Call, Global, Value, text
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors.dtypes import BY_NUMPY, DType
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor, view

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFERS = ("numpy.core.numeric", "numpy._core.numeric")
KNOWN = frozenset(
    {f"{module}.{name}" for module in _MODULES for name in ("_reconstruct", "scalar")}
    | {f"{module}._frombuffer" for module in _BUFFERS}
    | {"numpy.dtype", "numpy.ndarray"}
)


def is_array(call: Call) -> bool:
    """Return whether the call makes a numpy.ndarray, with elements in its state or arguments."""
    if any(call.calls(module, "_frombuffer") for module in _BUFFERS):
        return True
    return any(call.calls(module, "_reconstruct") for module in _MODULES) and bool(call.state)


def array(call: Call) -> Tensor:
    """Return the array as an unnamed tensor over the bytes in the pickle.

    Raises Unsupported for element types that are not plain numbers, Malformed for inconsistent
    sizes.
    """
    match call:
        case Call(state=(int(), tuple() as shape, Call() as descr, bool() as fortran, data)):
            pass
        case Call(args=(data, Call() as descr, tuple() as shape, "C" | "F" as order), state=None):
            fortran = order == "F"  # protocol 5
        case _:
            raise Malformed(f"invalid NumPy array: {text(call.args)} with state {text(call.state)}")
    content = _content(data)
    if content is None:
        raise Unsupported(f"NumPy element type {text(descr)} is not supported")
    if len(shape) > RANK or not all(type(size) is int and size >= 0 for size in shape):
        raise Malformed(f"a NumPy array has the invalid shape {text(shape)}")
    dtype, byteorder = _dtype(descr)
    strides = c_strides(shape)
    if fortran:
        strides = c_strides(shape[::-1])[::-1]
    name = _Latin1.name
    source = _Latin1(content) if isinstance(content, str) else MemoryBytes(name, content)
    storage = Storage(source, 0, len(content), "array", byteorder)
    tensor = view(dtype, shape, strides, 0, storage)
    if tensor.nbytes != len(content):
        raise Malformed(f"a NumPy array of shape {shape} has {len(content):,} bytes")
    return tensor


def scalar(call: Call) -> Value:
    """Return the Python number for `numpy.core.multiarray.scalar(dtype, bytes)`, or None."""
    if not any(call.calls(module, "scalar") for module in _MODULES):
        return None
    match call.args:
        case (Call() as descr, data):
            content = _content(data)
        case _:
            return None
    try:
        dtype, byteorder = _dtype(descr)
    except Unsupported:
        return None
    code = _STRUCT.get(dtype.name)
    if content is None or code is None or len(content) != dtype.nbytes:
        return None
    if isinstance(content, str):
        if max(content) > "\xff":
            return None
        content = content.encode("latin-1")
    return struct.unpack(("<" if byteorder == "little" else ">") + code, content)[0]


_STRUCT = {
    "float64": "d",
    "float32": "f",
    "float16": "e",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint64": "Q",
    "uint32": "I",
    "uint16": "H",
    "uint8": "B",
    "bool": "?",
}


def _dtype(descr: Call) -> tuple[DType, str]:
    """Return element type and byte order of a pickled numpy.dtype: its code, then a state."""
    match descr:
        case Call(func=Global(module="numpy", name="dtype"), args=(str(code), *_), state=state):
            pass
        case _:
            raise Unsupported(f"NumPy element type {text(descr)} is not supported")
    plain = re.fullmatch(r"[fiucb][0-9]{1,2}", code)
    match state:  # version, byte order, then fields of subarrays and records only
        case (int(), "<" | ">" | "|" as order, None, None, None, *_) if plain:
            for prefix in "<|":
                if prefix + code in BY_NUMPY:
                    return BY_NUMPY[prefix + code], "big" if order == ">" else "little"
    raise Unsupported(f"NumPy element type {code!r} is not supported")


def _content(value: Value) -> bytes | bytearray | str | None:
    """Return bytes, or latin-1 text from Python 2 strings and protocol 2's encode call."""
    match value:
        case Call(func=Global(module="_codecs", name="encode"), args=(str(chars), "latin1")):
            return chars
        case Call(func=Global(module="builtins" | "__builtin__", name="bytes"), args=()):
            return b""  # the form of protocols 0 to 2
        case bytes() | bytearray() | str():
            return value
    return None


class _Latin1:
    """Bytes that the pickle stores as text, not copied, because many arrays may share one text."""

    name = "data.pkl"
    in_memory = True  # see `is_in_memory`

    def __init__(self, chars: str) -> None:
        self.nbytes = len(chars)
        self._chars = chars

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        try:
            buffer[:] = self._chars[offset : offset + len(buffer)].encode("latin-1")
        except UnicodeEncodeError as error:
            raise Malformed(
                "the bytes of a NumPy array are a text that cannot be encoded", where=self.name
            ) from error

    def check_unchanged(self) -> None:
        """Do nothing: the bytes in memory do not change."""

"""NumPy arrays and scalars inside a pickle, recognised as data (numpy/_core/multiarray)."""

from __future__ import annotations

import re
import struct

from cgpt_convert.dtypes import BY_NUMPY, DType
from cgpt_convert.errors import Malformed, Unsupported
from cgpt_convert.inert import Call, Global, Value, text
from cgpt_convert.source import MemoryBytes
from cgpt_convert.tensor import Storage, Tensor, c_strides, view

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
KNOWN = frozenset(
    {f"{module}.{name}" for module in _MODULES for name in ("_reconstruct", "scalar")}
    | {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}
    | {"numpy.dtype", "numpy.ndarray"}
)


def is_array(call: Call) -> bool:
    """Does the call make a numpy.ndarray, with its elements in its state?"""
    return any(call.calls(module, "_reconstruct") for module in _MODULES) and bool(call.state)


def array(call: Call) -> Tensor:
    """The array as an unnamed tensor over the bytes that the pickle holds.

    Raises Unsupported for element types that are no plain numbers, Malformed for sizes that clash.
    """
    match call.state:
        case (int(), tuple() as shape, Call() as descr, bool() as fortran, data):
            pass
        case _:
            raise Malformed(f"an array with state {text(call.state)}")
    raw = as_bytes(data)
    if raw is None or not all(type(size) is int and size >= 0 for size in shape):
        raise Unsupported(f"an array of {text(descr)}")
    dtype, byteorder = _dtype(descr)
    strides = c_strides(shape)
    if fortran:
        strides = c_strides(shape[::-1])[::-1]
    storage = Storage(MemoryBytes("data.pkl", raw), 0, len(raw), "array", byteorder)
    tensor = view(dtype, shape, strides, 0, storage)
    if tensor.nbytes != len(raw):
        raise Malformed(f"an array of shape {shape} with {len(raw):,} bytes")
    return tensor


def scalar(call: Call) -> Value:
    """The Python number that `numpy.core.multiarray.scalar(dtype, bytes)` stands for, or None."""
    if not any(call.calls(module, "scalar") for module in _MODULES):
        return None
    match call.args:
        case (Call() as descr, data):
            raw = as_bytes(data)
        case _:
            return None
    try:
        dtype, byteorder = _dtype(descr)
    except Unsupported:
        return None
    code = _STRUCT.get(dtype.name)
    if raw is None or code is None or len(raw) != dtype.nbytes:
        return None
    return struct.unpack(("<" if byteorder == "little" else ">") + code, raw)[0]


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
    """The element type and byte order of a pickled numpy.dtype: its code, then a state."""
    match descr:
        case Call(func=Global(module="numpy", name="dtype"), args=(str(code), *_), state=state):
            pass
        case _:
            raise Unsupported(f"an array of {text(descr)}")
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
    plain = re.fullmatch(r"[fiucb][0-9]{1,2}", code)
    for prefix in "<|":
        if plain and prefix + code in BY_NUMPY:
            return BY_NUMPY[prefix + code], "big" if order == ">" else "little"
    raise Unsupported(f"an array of numpy type {code!r}")


def as_bytes(value: Value) -> bytes | None:
    """Bytes as protocol 3 writes them, or as protocol 2 does: latin-1 text and an encode call."""
    match value:
        case bytes():
            return value
        case Call(func=Global(module="_codecs", name="encode"), args=(str(chars), "latin1")):
            try:
                return chars.encode("latin-1")
            except UnicodeEncodeError:
                return None
    return None

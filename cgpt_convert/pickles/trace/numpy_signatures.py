"""Signatures of the calls by which NumPy writes arrays, element types and random generators.

NumPy's `arraydescr_setstate` and `array_setstate` do not validate: an element type with forged
flags turns bytes into objects.
"""

from __future__ import annotations

import re
from functools import lru_cache

from cgpt_convert.pickles.nodes import Value
from cgpt_convert.pickles.trace.call_checks import (
    NEVER,
    Accept,
    Check,
    Signature,
    each_of,
    either,
    fixed,
    is_bytes,
    is_flag,
    is_integer,
    is_integers,
    is_items,
    is_none,
    is_number,
    is_text,
    made,
    named,
    one_of,
    tuple_of,
)
from cgpt_convert.pickles.trace.cursor import Span
from cgpt_convert.pickles.trace.uses import CallResult

# -- element types: a code, and a state that says no more than the code does

_is_order = one_of("<", ">", "|", "=")
_NUMERIC = tuple_of(
    *(is_integer, _is_order, is_none, is_none, is_none, one_of(-1), one_of(-1), one_of(0)),
    is_none,
    optional=1,
)
_TIME = tuple_of(
    *(is_integer, _is_order, is_none, is_none, is_none, one_of(-1), one_of(-1), one_of(0)),
    tuple_of(
        either(is_none, is_items),
        tuple_of(is_bytes, is_integer, is_integer, is_integer),
    ),
)
_OBJECT = CallResult(
    "object dtype",
    "numpy.dtype",
    state=tuple_of(
        *(is_integer, one_of("|"), is_none, is_none, is_none),
        *(one_of(-1), one_of(-1), one_of(63)),
    ),
)
_CODE = re.compile(r"(?P<kind>[fiubcSUVmM])(?P<size>[0-9]{1,9})")
_UCS4 = 4  # bytes of a character
# flags of elements with fields: NPY_USE_GETITEM, and NPY_NEEDS_INIT and NPY_ALIGNED_STRUCT perhaps
_RECORD = tuple(0x10 | init | aligned for init in (0, 0x08) for aligned in (0, 0x80))


@lru_cache(maxsize=1024)
def _element(code: str) -> CallResult | None:
    """Return the element type of that code."""
    if code in ("O8", "O4", "O"):
        return _OBJECT
    match = _CODE.fullmatch(code)
    if not match:
        return None
    kind, nbytes = match["kind"], int(match["size"])
    if kind in "SUV":  # text, bytes, raw
        nbytes *= _UCS4 if kind == "U" else 1
        state: Check = _flexible(nbytes)
        if kind == "V":
            state = either(state, lambda value: _is_record(value, nbytes))
    else:
        state = _TIME if kind in "mM" else _NUMERIC
    return CallResult("dtype", "numpy.dtype", state=state, nbytes=nbytes)


def _flexible(nbytes: int) -> Check:
    """Return the check for the state of text, bytes or raw elements."""
    return tuple_of(
        *(is_integer, _is_order, is_none, is_none, is_none),
        *(one_of(nbytes), one_of(1, _UCS4), one_of(0, 8)),  # 8: NPY_NEEDS_INIT
        is_none,
        optional=1,
    )


def _is_record(state: Value, nbytes: int) -> bool:
    """Return whether it is the state of elements with fields, none of which is an object."""
    frame = tuple_of(
        *(is_integer, _is_order, is_none, each_of(is_text), is_items),
        *(one_of(nbytes), is_integer, one_of(*_RECORD)),
        is_none,
        optional=1,
    )
    if not frame(state) or state[4].dropped:
        return False
    return all(
        tuple_of(made("dtype"), is_integer)(field) and 0 <= field[1] <= nbytes - field[0].nbytes
        for _, field in state[4].items
    )


def _dtype(args: tuple[Value, ...]) -> Value:
    if tuple_of(is_text, is_flag, is_flag)(args) and type(args[0]) is str:
        return _element(args[0])
    return None


# -- arrays: a shape, an element type and bytes, or a list if the elements are objects

_is_element = made("dtype")
_ARRAY = CallResult(
    "array",
    "numpy.ndarray",
    state=either(
        tuple_of(is_integer, is_integers, _is_element, is_flag, is_bytes),
        tuple_of(
            *(is_integer, is_integers, made("object dtype"), is_flag),
            lambda value: type(value) is list,
        ),
    ),
)


def _is_b(value: Value) -> bool:
    """Return whether it is the typecode that NumPy writes if the state has the type."""
    return value == "b" or (isinstance(value, Span) and value.head == b"b")


# -- random generators, which training checkpoints hold

_BIT_GENERATORS = {
    "MT19937": "_mt19937",
    "PCG64": "_pcg64",
    "PCG64DXSM": "_pcg64",
    "Philox": "_philox",
    "SFC64": "_sfc64",
}
_GENERATOR_CLASSES = [f"numpy.random.{module}.{name}" for name, module in _BIT_GENERATORS.items()]
_SEQUENCE = "numpy.random.bit_generator.SeedSequence"
_BIT_GENERATOR_CTOR = "numpy.random._pickle.__bit_generator_ctor"
_is_seeds = either(is_none, is_number, is_text, made("array"), each_of(is_integer))
_SEEDS = CallResult(
    "seeds", _SEQUENCE, state=tuple_of(_is_seeds, is_integer, _is_seeds, is_integer, is_integers)
)
_BITS = CallResult(
    "bit generator",
    _BIT_GENERATOR_CTOR,
    state=either(is_items, tuple_of(is_items, either(is_none, made("seeds")))),
)
_GENERATOR = CallResult("generator", "numpy.random.Generator", state=either(is_none, is_items))
_generator: Accept = fixed(
    _GENERATOR,
    either(one_of(*_BIT_GENERATORS), made("bit generator")),
    named([_BIT_GENERATOR_CTOR]),
    optional=1,
)

_SCALARS = (
    "bool bool_ bytes_ complex128 complex64 float16 float32 float64 int16 int32 int64 int8 str_ "
    "uint16 uint32 uint64 uint8"
)
NUMPY: dict[str, Signature] = {
    **{
        f"numpy.{core}.multiarray._reconstruct": Signature(
            fixed(_ARRAY, named(["numpy.ndarray"]), tuple_of(one_of(0)), _is_b)
        )
        for core in ("core", "_core")
    },
    **{
        f"numpy.{core}.multiarray.scalar": Signature(
            fixed(CallResult("value", "numpy.generic"), _is_element, is_bytes)
        )
        for core in ("core", "_core")
    },
    **{
        f"numpy.{core}.numeric._frombuffer": Signature(
            fixed(
                CallResult("array", "numpy.ndarray"),
                *(is_bytes, _is_element, is_integers, one_of("C", "F")),
                either(is_none, is_integers),
                optional=1,
            )
        )
        for core in ("core", "_core")
    },
    "numpy.dtype": Signature(_dtype),
    "numpy.ndarray": NEVER,
    _BIT_GENERATOR_CTOR: Signature(
        fixed(_BITS, either(one_of(*_BIT_GENERATORS), named(_GENERATOR_CLASSES)), optional=1)
    ),
    "numpy.random._pickle.__generator_ctor": Signature(_generator),
    "numpy.random._pickle.__randomstate_ctor": Signature(_generator),
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": Signature(
        fixed(_SEEDS, named([_SEQUENCE]), is_integer, is_none)
    ),
    _SEQUENCE: NEVER,
    **{f"numpy.{name}": NEVER for name in _SCALARS.split()},
    **dict.fromkeys(_GENERATOR_CLASSES, NEVER),
}

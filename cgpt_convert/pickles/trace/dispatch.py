"""The dispatch table of the tracing machine: the function and the cost for each byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cgpt_convert.core.limits import Prices
from cgpt_convert.pickles.decode.opcode_table import OPCODES
from cgpt_convert.pickles.nodes import Value
from cgpt_convert.pickles.trace.lenient_argument_reader import ARGUMENTS, memo_index

# opcode -> what it does, where the name of the method is not the opcode's own
_OTHER = {
    "text": "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING",
    "span": "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8",
    "GET": "GET BINGET LONG_BINGET",
    "PUT": "PUT BINPUT LONG_BINPUT",
    "EXT": "EXT1 EXT2 EXT4",
    "pop_to_mark": "POP_MARK",
    "APPENDS": "APPENDS ADDITEMS",
    "OUT_OF_BAND": "NEXT_BUFFER",
}
_PUSHED = "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT"
_LINES = {"GET": memo_index, "PUT": memo_index}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}

# What counts as several opcodes, because it takes as long
_LONG = "LIST DICT FROZENSET APPENDS ADDITEMS SETITEM SETITEMS INT LONG FLOAT LONG1 LONG4"
_CALLS = "GLOBAL STACK_GLOBAL EXT1 EXT2 EXT4 PERSID BINPERSID REDUCE NEWOBJ NEWOBJ_EX OBJ BUILD"
_COSTS = {
    **dict.fromkeys(f"{_OTHER['text']} {_OTHER['span']} {_LONG}".split(), Prices.long),
    **dict.fromkeys(_CALLS.split(), Prices.call),
    "INST": Prices.inst,
}

# what it does, None if it pushes its argument; what reads that; as how many opcodes it counts
Entry = tuple[Any, Any, int]


def dispatch(kind: Any) -> list[Entry]:
    """Return the table for a machine class, whose methods are named after opcodes."""
    methods: dict[str, Callable[..., object] | None] = {
        **{name: getattr(kind, name) for name in dir(kind) if name.isupper()},
        **{op: getattr(kind, name) for name, ops in _OTHER.items() for op in ops.split()},
        **dict.fromkeys(_PUSHED.split()),
        **{name: _constant(value) for name, value in _CONSTANTS.items()},
    }
    table: list[Entry] = [(kind.unknown, None, 1)] * 256
    for byte, (opcode, layout) in OPCODES.items():
        if opcode != "STOP":
            read = _LINES.get(opcode) or ARGUMENTS.get(layout)
            table[byte] = methods[opcode], read, _COSTS.get(opcode, 1)
    return table


def _constant(value: Value) -> Callable[[Any], None]:
    return lambda machine: machine.stack.append(value)

"""The opcodes of the pickle format, protocols 0 to 5: byte, name, layout of the argument.

Names are those of the standard library's `pickletools`, which specifies the format. Importing it is
slow, so the tests compare the table with it instead.
"""

from __future__ import annotations

_BY_LAYOUT = {  # "" for opcodes without an argument
    "": {
        "MARK": "(",
        "STOP": ".",
        "POP": "0",
        "POP_MARK": "1",
        "DUP": "2",
        "NONE": "N",
        "NEWTRUE": "\x88",
        "NEWFALSE": "\x89",
        "EMPTY_TUPLE": ")",
        "TUPLE": "t",
        "TUPLE1": "\x85",
        "TUPLE2": "\x86",
        "TUPLE3": "\x87",
        "EMPTY_LIST": "]",
        "LIST": "l",
        "APPEND": "a",
        "APPENDS": "e",
        "EMPTY_DICT": "}",
        "DICT": "d",
        "SETITEM": "s",
        "SETITEMS": "u",
        "EMPTY_SET": "\x8f",
        "ADDITEMS": "\x90",
        "FROZENSET": "\x91",
        "MEMOIZE": "\x94",
        "STACK_GLOBAL": "\x93",
        "REDUCE": "R",
        "BUILD": "b",
        "OBJ": "o",
        "NEWOBJ": "\x81",
        "NEWOBJ_EX": "\x92",
        "BINPERSID": "Q",
        "NEXT_BUFFER": "\x97",
        "READONLY_BUFFER": "\x98",
    },
    "uint1": {"BININT1": "K", "BINGET": "h", "BINPUT": "q", "PROTO": "\x80", "EXT1": "\x82"},
    "uint2": {"BININT2": "M", "EXT2": "\x83"},
    "int4": {"BININT": "J", "EXT4": "\x84"},
    "uint4": {"LONG_BINGET": "j", "LONG_BINPUT": "r"},
    "uint8": {"FRAME": "\x95"},
    "float8": {"BINFLOAT": "G"},
    "long1": {"LONG1": "\x8a"},
    "long4": {"LONG4": "\x8b"},
    "string1": {"SHORT_BINSTRING": "U"},
    "string4": {"BINSTRING": "T"},
    "bytes1": {"SHORT_BINBYTES": "C"},
    "bytes4": {"BINBYTES": "B"},
    "bytes8": {"BINBYTES8": "\x8e"},
    "bytearray8": {"BYTEARRAY8": "\x96"},
    "unicodestring1": {"SHORT_BINUNICODE": "\x8c"},
    "unicodestring4": {"BINUNICODE": "X"},
    "unicodestring8": {"BINUNICODE8": "\x8d"},
    "decimalnl_short": {"INT": "I", "GET": "g", "PUT": "p"},
    "decimalnl_long": {"LONG": "L"},
    "floatnl": {"FLOAT": "F"},
    "stringnl": {"STRING": "S"},
    "stringnl_noescape": {"PERSID": "P"},
    "stringnl_noescape_pair": {"GLOBAL": "c", "INST": "i"},
    "unicodestringnl": {"UNICODE": "V"},
}

# byte -> name of the opcode, and of its argument's layout
OPCODES: dict[int, tuple[str, str]] = {
    ord(byte): (name, layout) for layout, rows in _BY_LAYOUT.items() for name, byte in rows.items()
}

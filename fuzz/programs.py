"""Random pickles: of values, of imports hidden in many ways, of allowed names put to other uses.

What they would run is harmless: a module of the standard library that computes colours, or
`os.system` with an `echo`.
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import pickletools
import struct
from random import Random
from typing import Any

import numpy as np
import torch

from tests.helpers.hostile_pickles import DANGEROUS, FOREIGN, HARMLESS

FOREIGN_NAMES = (("os", "system"), ("colorsys", "rgb_to_hls"), ("posix", "system"))
ALLOWED_NAMES = (
    *(("collections", "OrderedDict"), ("collections", "Counter"), ("collections", "defaultdict")),
    *(("_codecs", "encode"), ("builtins", "bytearray"), ("builtins", "set"), ("builtins", "dict")),
    *(("builtins", "list"), ("builtins", "bytes"), ("builtins", "tuple"), ("builtins", "slice")),
    *(("builtins", "int"), ("builtins", "str"), ("builtins", "complex"), ("builtins", "range")),
    *(("numpy", "dtype"), ("numpy", "ndarray"), ("numpy._core.multiarray", "_reconstruct")),
    *(("numpy._core.multiarray", "scalar"), ("numpy._core.numeric", "_frombuffer")),
    *(("torch", "Tensor"), ("torch", "Size"), ("torch", "device"), ("torch", "FloatStorage")),
    *(("torch", "float32"), ("torch", "FloatTensor"), ("torch.storage", "UntypedStorage")),
    *(("torch.storage", "TypedStorage"), ("torch.storage", "_load_from_bytes")),
    *(("torch.serialization", "_get_layout"), ("torch.nn.parameter", "Parameter")),
    *(("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")),
    *(("torch._utils", "_rebuild_parameter_with_state"), ("torch._utils", "_rebuild_qtensor")),
    *(("torch._tensor", "_rebuild_from_type_v2"), ("torch._utils", "_rebuild_sparse_tensor")),
    *(("torch._utils", "_rebuild_device_tensor_from_numpy"),),
    *(("torch._utils", "_rebuild_wrapper_subclass"),),
    *(("torch._utils", "_rebuild_meta_tensor_no_storage"),),
)  # fmt: skip
_ATTRIBUTES = (
    *("append", "extend", "update", "__setstate__", "__dict__", "__class__", "__reduce__", "add"),
    *("data", "cache", "_metadata", "__setitem__", "device", "_backward_hooks", "x"),
)
OPCODES = [ord(info.code) for info in pickletools.opcodes]
MAGIC = 0x1950A86A20F9469CFC6C


def program(dice: Random) -> bytes:
    """Return a random pickle."""
    return dice.choice(_KINDS)(dice)


def _value(dice: Random) -> Any:
    values: tuple[Any, ...] = (
        {"a": [1, 2.5, "x" * 30, b"y" * 30, None, True, 1 << 80, {3}, frozenset([4])]},
        collections.OrderedDict(b=2),
        collections.Counter("aab"),
        np.arange(5.0),
        np.array([1, "a", None], dtype=object),
        np.float64(2.5),
        torch.Size([1, 2]),
        torch.float16,
        bytearray(b"abc"),
        [{"lr": 0.1, "params": [0, 1]}] * 2,
        MAGIC,
        1001,
        "text",
    )
    return dice.choice(values)


def _plain(dice: Random) -> bytes:
    data = pickle.dumps(_value(dice), dice.randrange(6))
    return _stripped(dice, data)


def _stripped(dice: Random, data: bytes) -> bytes:
    """The same pickle, often without PROTO and sometimes without its frame or its end."""
    if dice.random() < 0.4 and data[:1] == b"\x80":
        data = data[2:]
        if data[:1] == b"\x95":
            data = data[9:]
    return data[:-1] if dice.random() < 0.15 else data


def _foreign(dice: Random) -> bytes:
    if dice.random() < 0.3:
        known = (*(data for data, _ in (*DANGEROUS.values(), *FOREIGN.values())),)
        return _stripped(dice, dice.choice(known))
    if dice.random() < 0.1:
        return _stripped(dice, pickle.dumps(argparse.Namespace(a=1), dice.randrange(6)))
    return program_of(dice, imported(dice, *dice.choice(FOREIGN_NAMES)))


def program_of(dice: Random, using: bytes) -> bytes:
    """Return a pickle that imports, uses and surrounds a name in a random way."""
    used = using + dice.choice(_USES)
    body = _innocent(dice) + used + dice.choice(_ENDS)
    if dice.random() < 0.3:
        body = _framed(dice, body)
    return dice.choice((b"", b"", b"\x80\2", b"\x80\4", b"\x80\5")) + body


_USES = (
    *(b"", b"(S'echo'\ntR", b"(Vecho\ntR", b"X\4\0\0\0echo\x85R", b")R", b")\x81", b"}b", b"Na"),
    *(b"(tR)R", b"0N", b"\x85", b"q\0", b"X\4\0\0\0echo\x85\x81}b"),
)
_ENDS = (b".", b".", b"", b"\xff", b"b", b"0.", b"0N.", b".N.", b".\xff", b"R.", b"e", b"\x94.")


def _innocent(dice: Random) -> bytes:
    if dice.random() < 0.5:
        return b""
    number = b"9" * dice.choice((1, 3, 19, 63, 64, 65, 70, 200))
    zeros = b"0" * dice.choice((1, 2, 30, 64, 100))
    units = (
        *(b"N0", b"K\0010", b"(1", b"]0", b"}0", b"I1\n0", b"L5L\n0", b"F1\n0", b"(lp0\n0"),
        *(b"Np" + number + b"\n0", b"Np" + zeros + b"1\ng1\n00", b"Nq\0000", b"(tp1\n0"),
        *(b"ccollections\nOrderedDict\n)R0", b"V\\u0061\n0", b"S'\\x61'\n0", b"C\1a0"),
        *(b"I" + zeros + b"1\n0", b"L" + number + b"L\n0", b"I 1_0 \n0", b"I01\n0", b"Px\n0"),
    )
    return b"".join(
        dice.choice(units) * dice.choice((1, 1, 2, 50)) for _ in range(dice.randint(1, 4))
    )


def imported(dice: Random, module: str, name: str) -> bytes:
    """Return opcodes that import the name, in one of the ways that there are."""
    first, second = _text(dice, module), _text(dice, name)
    ways = (
        f"c{module}\n{name}\n".encode(),
        f"c{module}\n{name}\n".encode(),
        first + second + b"\x93",
        first + b"q\1000" + second + b"q\2000h\1h\2\x93",
        second + b"p07\n0" + first + b"g07\n\x93",
        f"(i{module}\n{name}\n".encode(),
        f"(S'echo'\ni{module}\n{name}\n".encode(),
        f"(c{module}\n{name}\nS'echo'\no".encode(),
        f"c{module}\n{name}\n\x940h\0".encode("latin-1"),
        b"\x80\2" + f"c{module}\n{name}\n".encode(),
    )
    return dice.choice(ways)


def _text(dice: Random, text: str) -> bytes:
    raw = text.encode()
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in text).encode()
    hexed = "".join(f"\\x{ord(letter):02x}" for letter in text).encode()
    ways = (
        b"\x8c" + bytes((len(raw),)) + raw,
        b"X" + struct.pack("<I", len(raw)) + raw,
        b"\x8d" + struct.pack("<Q", len(raw)) + raw,
        b"V" + raw + b"\n",
        b"V" + escaped + b"\n",
        b"S'" + raw + b"'\n",
        b'S"' + hexed + b'"\n',
        b"U" + bytes((len(raw),)) + raw,
        b"T" + struct.pack("<i", len(raw)) + raw,
    )
    return dice.choice(ways)


def _framed(dice: Random, body: bytes) -> bytes:
    """The same opcodes with a frame that fits, is short, is long, or lies in the middle."""
    at = dice.choice((0, 0, dice.randrange(len(body) + 1)))
    size = dice.choice((len(body) - at, 1, len(body), len(body) + 9000, 0, max(0, len(body) - 3)))
    filling = b"N0" * dice.choice((0, 0, 3, 4500))
    return body[:at] + b"\x95" + struct.pack("<Q", size) + filling + body[at:]


def _misused(dice: Random) -> bytes:
    """A pickle of allowed names only, called and changed at random."""
    out = bytearray(dice.choice((b"", b"\x80\2", b"\x80\4")))
    memo = 0
    for _ in range(dice.randint(1, 8)):
        out += _expression(dice, 3) + _changes(dice)
        if dice.random() < 0.5:
            out += b"q" + bytes((memo,))
            memo += 1
        if dice.random() < 0.5:
            out += b"0"
        if memo and dice.random() < 0.4:
            out += b"h" + bytes((dice.randrange(memo),)) + _changes(dice)
    return bytes(out) + dice.choice((b".", b".", b"", b"\xff"))


def _expression(dice: Random, depth: int) -> bytes:
    name = "c{}\n{}\n".format(*dice.choice(ALLOWED_NAMES)).encode()
    if not depth or dice.random() < 0.35:
        return dice.choice((*_ATOMS, name))
    inner = b"".join(_expression(dice, depth - 1) for _ in range(dice.randint(0, 4)))
    ways = (
        name + b"(" + inner + b"tR",
        name + b"(" + inner + b"tR",
        name + b"(" + inner + b"t\x81",
        name + b")}X\1\0\0\0aK\1s\x92",
        b"(" + name + inner + b"o",
        b"(" + inner + name[1:-1].join((b"i", b"\n")),
        b"(" + inner + b"t",
        b"(" + inner + b"l",
        b"}(X\1\0\0\0k" + _expression(dice, depth - 1) + b"u",
    )
    return dice.choice(ways)


def _changes(dice: Random) -> bytes:
    if dice.random() < 0.5:
        return b""
    key = dice.choice(_ATTRIBUTES).encode()
    item = b"X" + struct.pack("<I", len(key)) + key + _expression(dice, 1)
    value = _expression(dice, 1)
    ways = (
        *(b"}" + item + b"sb", b"N}" + item + b"s\x86b", item + b"s", value + b"a"),
        *(b"(" + value + b"e", b"(" + item + b"u", b"(" + value + b"\x90", value + b"b"),
    )
    return dice.choice(ways)


_ATOMS = (
    *(b"N", b"K\0", b"K\1", b"K\7", b"\x88", b"\x89", b"]", b"}", b")", b"\x8f"),
    *(b"J\xff\xff\xff\xff", b"K\1\x85", b"K\2K\2\x86", b"X\5\0\0\0numpy", b"X\3\0\0\0cpu"),
    *(b"X\1\0\0\0O", b"X\2\0\0\0i8", b"X\6\0\0\0latin1", b"C\4abcd", b"X\1\0\0\0C"),
    *(b"G?\xf0\0\0\0\0\0\0", b"X\4\0\0\0exec", b"U\1b", b"C\1b"),
)  # fmt: skip


def _random(dice: Random) -> bytes:
    pieces = (
        *(b"cos\nsystem\n", b"(S'id'\nt", b"\x8c\x02os\x8c\x06system\x93", b"(ios\nsystem\n"),
        *(
            b"q\0",
            b"p1\n",
            b"g1\n",
            b"K\1",
            b"X\1\0\0\0a",
            b"\x95\6\0\0\0\0\0\0\0",
            b"Px\n",
            b"C\1b",
        ),
        *(b"h\0", b"ccollections\nOrderedDict\n", b"}", b"V__setstate__\n"),
        *(bytes((code,)) for code in b"R012(\x94bo\x81\x92saeu\x90\x91]})\x8fNtQ.\x85\x86\x87"),
    )
    return b"".join(dice.choice(pieces) for _ in range(dice.randint(2, 25)))


def _several(dice: Random) -> bytes:
    """Pickles behind one another."""
    return b"".join(program(dice) for _ in range(dice.randint(2, 4)))


def _nested(dice: Random) -> bytes:
    """A pickle with another one in a byte string."""
    inner = program(dice)
    size = struct.pack("<I", len(inner))
    as_bytes = dice.choice((b"B" + size + inner, b"T" + size + inner))
    ways = (
        b"\x80\3" + as_bytes + b".",
        b"\x80\2ctorch.storage\n_load_from_bytes\n" + as_bytes + b"\x85R.",
        b"ctorch.storage\n_load_from_bytes\n" + as_bytes + b"\x85R.",
    )
    return dice.choice(ways)


def _known_harmless(dice: Random) -> bytes:
    return dice.choice(list(HARMLESS.values()))


def _state(dice: Random) -> bytes:
    """The `data.pkl` of what torch saves."""
    tensor = torch.arange(4.0)
    values: tuple[Any, ...] = (
        {"w": tensor, "t": tensor[1:]},
        {"p": torch.nn.Parameter(tensor), "h": tensor.half()},
        collections.OrderedDict(s=torch.eye(2).to_sparse(), step=3),
        {"m": torch.empty(2, device="meta"), "c": torch.tensor(1j), "b": torch.ones(2).bool()},
    )
    return data_pickle(dice.choice(values))


def data_pickle(value: Any) -> bytes:
    """Return the `data.pkl` that torch.save writes for the value."""
    import zipfile

    file = io.BytesIO()
    torch.save(value, file)
    with zipfile.ZipFile(file) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def mutated(dice: Random, data: bytes) -> bytes:
    """Return the data after one to four small edits."""
    out = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at, how = dice.randrange(len(out) + 1), dice.random()
        if how < 0.4 and at < len(out):
            out[at] = dice.choice(OPCODES) if dice.random() < 0.5 else dice.randrange(256)
        elif how < 0.6:
            out[at:at] = dice.choice(
                (b"N", b"N0", b"\0", b"\n", b"0", b"2", b"(", b"ccolorsys\nx\n")
            )
        elif how < 0.75:
            del out[at : at + dice.randint(1, 5)]
        elif how < 0.85:
            out[at:at] = out[at : at + dice.randint(1, 9)]
        elif how < 0.9:
            del out[at:]
        else:
            out[at:at] = dice.randbytes(dice.randint(1, 4))
    return bytes(out)


def _mutated(dice: Random) -> bytes:
    return mutated(dice, program(dice))


_KINDS = (
    *(_plain, _foreign, _foreign, _foreign, _misused, _misused, _random, _several, _nested),
    *(_known_harmless, _state, _mutated, _mutated, _mutated),
)

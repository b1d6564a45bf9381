"""Random containers around pickles: those that loaders open, whole, damaged and in one another."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import lzma
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch.package.package_exporter import PackageExporter

from fuzz.programs import MAGIC, data_pickle, mutated, program
from tests.helpers import zips
from tests.helpers.zips import Entry

DEPTH = 3
_BLOCK = 512

Wrap = Callable[[Random, bytes], bytes]


def generated(dice: Random) -> bytes:
    """Return a random file."""
    data = program(dice)
    if dice.random() < 0.35:
        return data
    for _ in range(dice.choice((1, 1, 1, 2, DEPTH))):
        data = dice.choice(WRAPPERS)(dice, data)
        if dice.random() < 0.3:
            data = mutated(dice, data)
    return data


# -- compression


def gzipped(dice: Random, data: bytes) -> bytes:
    """Gzip with any header fields, in one or several members."""
    at = dice.randrange(len(data) + 1)
    parts = [data[:at], data[at:]] if dice.random() < 0.3 else [data]
    padding = dice.choice((b"", b"", b"\0", b"\0" * 9))
    return padding.join(_gzip_member(dice, part) for part in parts)


def _gzip_member(dice: Random, data: bytes) -> bytes:
    plain = gzip.compress(data, dice.choice((0, 1, 9)), mtime=0)
    flags = dice.choice((0, 0, 0, 2, 4, 8, 16, 1, 32, 64, 128, 30))
    fields = b"\3\0abc" * bool(flags & 4) + b"name\0" * bool(flags & 8)
    fields += b"note\0" * bool(flags & 16)
    head = plain[:3] + bytes((flags,)) + plain[4:10] + fields
    if flags & 2:
        right = struct.pack("<H", zlib.crc32(head) & 0xFFFF)
        head += dice.choice((right, b"\0\0"))
    out = head + plain[10:]
    return out[:-8] + dice.choice((out[-8:], out[-8:], b"", bytes(8)))


def bzipped(dice: Random, data: bytes) -> bytes:
    """Bzip2, in one stream or two."""
    packed = bz2.compress(data, dice.choice((1, 9)))
    return packed[: dice.choice((len(packed), len(packed), len(packed) - 4))]


def lzmaed(dice: Random, data: bytes) -> bytes:
    """Xz or the older lzma, with any properties."""
    lc = dice.choice((3, 0, 4))
    pb = dice.choice((2, 0, 4))
    size = dice.choice((4096, 1 << 16, 3 << 12, 1 << 20))
    chain = [{"id": lzma.FILTER_LZMA1, "lc": lc, "lp": 0, "pb": pb, "dict_size": size}]
    if dice.random() < 0.5:
        alone = lzma.compress(data, lzma.FORMAT_ALONE, filters=chain)
        known = struct.pack("<Q", len(data))
        return alone[:5] + dice.choice((alone[5:13], known)) + alone[13:]
    chain[0]["id"] = lzma.FILTER_LZMA2
    if dice.random() < 0.3:
        chain.insert(0, {"id": lzma.FILTER_DELTA, "dist": 1})
    check = dice.choice((lzma.CHECK_NONE, lzma.CHECK_CRC32, lzma.CHECK_CRC64, lzma.CHECK_SHA256))
    packed = lzma.compress(data, lzma.FORMAT_XZ, check, filters=chain)
    return packed + dice.choice((b"", b"\0\0\0\0", b"\0")) + dice.choice((b"", b"", packed))


def zlibbed(dice: Random, data: bytes) -> bytes:
    """Zlib of any window and level."""
    packer = zlib.compressobj(dice.choice((0, 1, 6, 9)), zlib.DEFLATED, dice.choice((9, 12, 15)))
    return packer.compress(data) + packer.flush()


def zfiled(_dice: Random, data: bytes) -> bytes:
    """The oldest of joblib's compressed files."""
    return b"ZF" + hex(len(data)).ljust(19).encode() + zlib.compress(data)


def lz4ed(_dice: Random, data: bytes) -> bytes:
    """An LZ4 frame with one stored block."""
    head = b"\x04\x22\x4d\x18\x60\x40\x82"
    return head + struct.pack("<I", len(data) | 1 << 31) + data + bytes(4)


# -- zip


def zipped(dice: Random, data: bytes) -> bytes:
    """A zip with the data as one of its members, some fields at random."""
    names = (
        *("x.pkl", "archive/data.pkl", "archive/data/0", "a.npy", "data.pkl", "d/", "model.pt"),
        *("x.pkl\0.txt", "d\\x.pkl", "README.md", "archive/.data/x", "archive/DATA.PKL"),
    )
    entries = [_entry(dice, dice.choice(names), data)]
    if dice.random() < 0.4:
        entries.insert(dice.randint(0, 1), Entry(dice.choice(names), b"\x80\2N."))
    comment = dice.choice((b"", b"", b"", b"note", data[:60000]))
    before = dice.choice((b"", b"", b"", b"text", data))
    whole = zips.build(
        entries,
        comment=comment,
        before_directory=before,
        tail=dice.choice((b"", b"", b"", b"\0", b"PK\5\6")),
        zip64=dice.random() < 0.2,
        end=_end(dice),
    )
    return dice.choice((b"", b"", b"", b"#!/bin/sh\n", b"hello\n", data)) + whole


def _entry(dice: Random, name: str, data: bytes) -> Entry:
    entry = Entry(name, data)
    if dice.random() < 0.5:
        entry = zips.deflated(entry)
    if dice.random() < 0.7:
        return entry
    changes = (
        {"flags": dice.choice((1, 8, 0x40, 0x800, 0x2000))},
        {"local_flags": dice.choice((1, 8, 0x800))},
        {"crc": 0},
        {"nbytes": 1},
        {"compressed": 1},
        {"local_name": "other.pkl"},
        {"extra": b"\1\0\4\0abcd"},
        {"local_extra": b"PK" + struct.pack("<H", len(data) & 0xFFFF) + data[:0xFFFF]},
        {"method": 9, "crc": 0, "nbytes": len(data)},
        {"local_nbytes": 1},
    )
    return entry.but(**dice.choice(changes))


def _end(dice: Random) -> dict[str, int]:
    if dice.random() < 0.85:
        return {}
    fields = ("disk", "count", "nbytes", "offset", "w_count", "w_nbytes", "w_offset", "locator")
    return {dice.choice(fields): dice.choice((0, 1, 2, 50, 0xFFFF))}


def torch_zip(dice: Random, data: bytes) -> bytes:
    """A torch archive whose `data.pkl`, or another record, is the data."""
    records = {
        "archive/data.pkl": data_pickle({"w": torch.ones(2)}),
        "archive/byteorder": b"little",
        "archive/data/0": bytes(8),
        "archive/version": b"3\n",
    }
    records[dice.choice((*["archive/data.pkl"] * 5, "archive/data/0", "archive/x.pkl"))] = data
    return zips.build(Entry(name, raw) for name, raw in records.items())


def npz(dice: Random, data: bytes) -> bytes:
    """An .npz with an array of objects."""
    return zips.build([Entry("a.npy", npy(dice, data))])


def beside_safetensors(_dice: Random, data: bytes) -> bytes:
    """Valid safetensors with the data where the tensor's bytes are."""
    spare = -len(data) % 4
    raw = data + bytes(spare)
    header = b'{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(raw), len(raw))
    return struct.pack("<Q", len(header)) + header + raw


def beside_gguf(_dice: Random, data: bytes) -> bytes:
    """A GGUF without tensors, and the data where those would be."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
    return head + bytes(-len(head) % 32) + data


# -- arrays


def npy(dice: Random, data: bytes) -> bytes:
    """An .npy header that lets NumPy unpickle what follows."""
    descr = dice.choice(
        ("'|O'", "'O'", "[('a', '|O')]", "'|O8'", "'<f8'", "[('a', '<i4'), ('b', 'O')]")
    )
    shape = dice.choice(("(1,)", "()", "(0,)", "(2, 2)", "(1,)"))
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    version = dice.choice((1, 1, 2, 3))
    width = 2 if version == 1 else 4
    text = text.ljust(118 - width - 2 + 1) + "\n"
    return (
        b"\x93NUMPY"
        + bytes((version, 0))
        + len(text).to_bytes(width, "little")
        + text.encode()
        + data
    )


# -- torch's older files


def legacy(dice: Random, data: bytes) -> bytes:
    """The stream of torch before 1.6, with the data as one of its pickles."""
    magic = dice.choice(_magic_numbers(dice))
    parts = [magic, b"\x80\2M\xe9\3.", b"\x80\2}.", data_pickle({"a": 1}), b"\x80\2]."]
    parts[dice.choice((3, 3, 3, 0, 1, 2, 4))] = data
    if dice.random() < 0.3:
        parts[0] = magic
    return b"".join(parts) + dice.choice((b"", b"", data))


def _magic_numbers(dice: Random) -> tuple[bytes, ...]:
    """Return the spellings of one number."""
    zeros = b"0" * dice.choice((0, 1, 40, 70))
    raw = MAGIC.to_bytes(10, "little")
    return (
        b"\x80\2\x8a\n" + raw + b".",
        b"\x8a\n" + raw + b".",
        b"\x80\2\x8b\n\0\0\0" + raw + b".",
        b"\x8a\x40" + raw + bytes(54) + b".",
        b"L%dL\n." % MAGIC,
        b"I%d\n." % MAGIC,
        b"L" + hex(MAGIC).encode() + b"L\n.",
        b"I0x" + zeros + b"%x\n." % MAGIC,
        b"L0o%oL\n." % MAGIC,
        b"N0" * dice.choice((1, 32, 60)) + b"\x8a\n" + raw + b".",
        b"\x80\2\x8a\n" + raw + b"\x85q\0000\x8a\n" + raw + b".",
    )


def torch_tar(dice: Random, data: bytes) -> bytes:
    """The tar of torch 0.1, with the data as one of its members or of their pickles."""
    number = b"\x80\2K\0."
    members = {"sys_info": b"\x80\2}.", "storages": number + b"\x80\2].", "tensors": number}
    members["pickle"] = b"\x80\2}."
    way = dice.randrange(6)
    if way < 3:
        members["pickle"] = data
    elif way == 3:
        members["storages"] = number + data
    elif way == 4:
        members["storages"] = data
    else:
        members["tensors"] = data
    return _tar(dice, members)


def tarred(dice: Random, data: bytes) -> bytes:
    """A tar with the data as a member."""
    return _tar(dice, {dice.choice(("x.pkl", "d/x.pt", "a" * 120, "storages")): data})


def _tar(dice: Random, members: dict[str, bytes]) -> bytes:
    odd = dice.choice([*members, *[""] * len(members)])
    out = b""
    for name, data in members.items():
        out += _tar_member(dice, name, data) if name == odd else _plain_member(name, data)
    return out + dice.choice((bytes(2 * _BLOCK), bytes(20 * _BLOCK), b"", bytes(_BLOCK)))


def _plain_member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % _BLOCK)


def _tar_member(dice: Random, name: str, data: bytes) -> bytes:
    """A member that only a lenient reader takes as it is meant."""
    body = data + bytes(-len(data) % _BLOCK)
    header = bytearray(_plain_member(name, data)[:_BLOCK])
    way = dice.randrange(9)
    if way == 0:
        pax = {"path": name, dice.choice(("size", "comment")): str(len(data))}
        info = tarfile.TarInfo("other")
        info.size, info.pax_headers = len(data), pax
        return info.tobuf(tarfile.PAX_FORMAT) + body
    if way == 1:
        return _link(name, "target", dice) + _plain_member("target", data)
    if way == 2:
        return _plain_member("target", data) + _link(name, "target", dice)
    if way == 3:
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, len(name) + 1
        long = info.tobuf(tarfile.GNU_FORMAT) + (name.encode() + b"\0").ljust(_BLOCK, b"\0")
        return long + _plain_member("short", data)
    if way == 4:
        header[156:157] = dice.choice((b"\0", b"7", b"S", b"Z", b"5", b"1"))
        header[len(name) : len(name) + 1] = dice.choice((b"/", b"\0"))
    elif way == 5:
        header[124:136] = dice.choice(_numbers(len(data), 12))
    elif way == 6:
        return bytes(_BLOCK) * dice.choice((1, 2)) + bytes(header) + body
    return _sealed(dice, header) + body


def _link(name: str, to: str, dice: Random) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = dice.choice((tarfile.LNKTYPE, tarfile.SYMTYPE)), to
    return info.tobuf(tarfile.GNU_FORMAT)


def _numbers(number: int, width: int) -> tuple[bytes, ...]:
    octal = b"%o" % number
    return (
        octal.rjust(width, b" "),
        (b"+" + octal).ljust(width, b"\0"),
        (b"0o" + octal).ljust(width, b"\0"),
        (octal[:1] + b"_" * (len(octal) > 1) + octal[1:]).ljust(width, b" "),
        b"\x80" + number.to_bytes(width - 1, "big"),
        octal.ljust(width, b"\0"),
    )


def _sealed(dice: Random, header: bytearray) -> bytes:
    """The header with its checksum, plain or as tarfile also takes it."""
    header[148:156] = b" " * 8
    unsigned = sum(header)
    signed = sum(struct.unpack("512b", header))
    ways = (*_numbers(unsigned, 8), b"%06o\0 " % signed, b"%06o\0 " % unsigned)
    header[148:156] = dice.choice(ways)
    return bytes(header)


# -- code


@functools.cache
def script_records() -> dict[str, bytes]:
    """Return the records of TorchScript."""
    module = torch.nn.Linear(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(module, torch.ones(1, 1))
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
    return _records(buffer.getvalue())


def _records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class _Stateful(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale

    @torch.jit.export
    def __getstate__(self) -> tuple[int, bool]:
        return self.scale, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]) -> None:
        self.scale = state[0]
        self.training = state[1]


@functools.cache
def stateful_records() -> dict[str, bytes]:
    """Return the records of TorchScript whose class has a `__setstate__`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(_Stateful()), buffer)
    return _records(buffer.getvalue())


@functools.cache
def package_records() -> dict[str, bytes]:
    """Return the records of a torch.package."""
    buffer = io.BytesIO()
    with PackageExporter(buffer) as exporter:
        exporter.save_pickle("m", "res.pkl", {"a": [1, 2]})
    return _records(buffer.getvalue())


class _Exported(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


@functools.cache
def exported_records() -> dict[str, bytes]:
    """Return the records of a `.pt2` file."""
    buffer = io.BytesIO()
    sizes = {"x": {0: torch.export.Dim("batch", max=64)}}
    program = torch.export.export(_Exported(), (torch.ones(3, 2),), dynamic_shapes=sizes)
    torch.export.save(program, buffer)
    return _records(buffer.getvalue())


_LINES = (
    *(b'print("x")', b'torch.save(1, "x")', b"pass", b"self.training = False"),
    *(b'ops.aten.save(1, "x")', b'ops.prim.RaiseException("x")', b"raise Exception"),
)


def scripted(dice: Random, data: bytes) -> bytes:
    """TorchScript with the data as one of its pickles, or with a line in its code."""
    records = dict(dice.choice((script_records, stateful_records))())
    code = [name for name in records if name.endswith(".py")]
    pickles = [name for name in records if name.endswith(".pkl")]
    if dice.random() < 0.6:
        name = dice.choice(code)
        parts = records[name].split(b":\n    ")
        at = dice.randrange(1, len(parts))
        parts[at] = dice.choice(_LINES) + b"\n    " + parts[at]
        records[name] = b":\n    ".join(parts)
    elif dice.random() < 0.9:
        records[dice.choice(pickles)] = data
    return zips.build(Entry(name, raw) for name, raw in records.items())


def packaged(dice: Random, data: bytes) -> bytes:
    """A torch.package with the data as a pickle, or with a module of its own."""
    records = dict(package_records())
    root = next(iter(records)).split("/")[0]
    pickled = next(name for name in records if name.endswith("res.pkl"))
    if dice.random() < 0.4:
        records[f"{root}/collections/__init__.py"] = b"OrderedDict = dict\n"
        records[f"{root}/.data/extern_modules"] = b""
        records[pickled] = b"\x80\2ccollections\nOrderedDict\n)R."
    else:
        records[pickled] = data
    return zips.build(Entry(name, raw) for name, raw in records.items())


_EXPRESSIONS = (
    *(
        "print(1)",
        "s0.__class__",
        "2*s0",
        "__import__('os').getpid()",
        "../x",
        "x",
        "",
        "1",
        "eval",
    ),
)


def exported(dice: Random, data: bytes) -> bytes:
    """A `.pt2` with the data as a record or pickled constant, or with another text in its JSON."""
    records = dict(exported_records())
    texts = [name for name in records if b'"' in records[name]]
    root = texts[0].split("/", maxsplit=1)[0]
    way = dice.random()
    if way < 0.4:
        name = dice.choice(texts)
        records[name] = _another_text(dice, records[name])
    elif way < 0.6:
        name = f"{root}/data/{dice.choice(('constants/model_constants', 'weights/model_weights'))}"
        config = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
        records[f"{name}_config.json"] = json.dumps({"config": {"c": config}}).encode()
        records[f"{name.rpartition('/')[0]}/opaque_obj_0"] = data
    else:
        records[dice.choice(list(records))] = data
    if dice.random() < 0.1:
        records[f"{root}/data/aotinductor/model/x.so"] = b"\x7fELF" + bytes(60)
    return zips.build(Entry(name, raw) for name, raw in records.items())


def _another_text(dice: Random, document: bytes) -> bytes:
    """The JSON with one of its texts, often that of an expression, replaced."""
    parts = document.split(b'"')
    values = [
        at for at in range(1, len(parts) - 1, 2) if not parts[at + 1].lstrip().startswith(b":")
    ]
    sums = [at for at in values if parts[at - 2] == b"expr_str"]
    chosen = dice.choice(sums if sums and dice.random() < 0.5 else values or [1])
    parts[min(chosen, len(parts) - 1)] = dice.choice(_EXPRESSIONS).encode()
    return b'"'.join(parts)


WRAPPERS: tuple[Wrap, ...] = (
    *(gzipped, bzipped, lzmaed, lzmaed, zlibbed, zfiled, lz4ed),
    *(zipped, zipped, zipped, torch_zip, torch_zip, npz, npy, npy, legacy, legacy, legacy),
    *(torch_tar, torch_tar, torch_tar, tarred, tarred, beside_safetensors, beside_gguf),
    *(scripted, packaged, exported),
)

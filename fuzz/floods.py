# ruff: noqa: E501  one flood a line
"""Files of at most 1 MiB that cost as much as possible, one for each way that is known.

Those of tests/end_to_end/test_hostile_files.py are among them. Every flood is a folder: its first
file is what a command is given, and what else stands there, such as a config.json or the shards of
an index, is what else the command finds.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from cgpt_convert.core.limits import NODES
from cgpt_convert.tensors.content_digest import listed
from cgpt_convert.verification.lock_file import Lock, LockedTensor, encoded
from tests.end_to_end import test_hostile_files as known
from tests.end_to_end.test_hostile_files import (
    EMPTY,
    ORDERED,
    SYSTEM,
    TENSOR,
    flood,
    gguf_of,
    header,
    keyed,
    text,
)
from tests.formats.torch import test_tar_reader
from tests.helpers import zips
from tests.helpers.zips import Entry
from tests.pickles.decode.test_cost import LARGE

MiB = 1 << 20
Folder = dict[str, bytes]

_LONG = 4000  # characters: nearly as long as a name may be
_ROOM = MiB - 2000  # of a pickle in an archive
_VISITED = NODES.of(_ROOM) - 1000


def floods() -> dict[str, Callable[[], Folder]]:
    """Each flood by its name, to be made when it is wanted."""
    made: dict[str, Callable[[], Folder]] = {}
    for name, data in {**known.PICKLES, **pickles()}.items():
        made[f"archive, {name}"] = partial(_folder, "x.pt", partial(known.archive, _cut(data)))
        made[f"bare, {name}"] = partial(_folder, "x.pkl", partial(_cut, data))
        made[f"legacy, {name}"] = partial(_folder, "x.pt", partial(legacy, _cut(data)))
        if name in _SALVAGED:
            made[f"cut, {name}"] = partial(
                _folder, "x.pt", partial(zips.streamed, "archive/data.pkl", _cut(data))
            )
    for name, make in {**known.FILES, **known.PACKED, **FILES}.items():
        made[f"file, {name}"] = partial(_folder, "x.bin", make)
    return {**made, **FOLDERS}


def _folder(name: str, make: Callable[[], bytes]) -> Folder:
    return {name: make()}


# -- pickles


def pickles() -> dict[str, bytes]:
    """A flood for each class of opcodes, and for what the tree and the names may cost."""
    units = {name: flood(unit, head) for name, (head, unit) in UNITS.items()}
    more = {f"{name}, and a reference": _referring(*UNITS[name]) for name in _FOLDED}
    more |= {f"{name}, as many as are visited": _visited(*unit) for name, unit in UNITS.items()}
    shared = {
        f"a large {kind}, shared": b"\x80\4" + data + b"(" + b"h\0" * 200_000 + b"NQl."
        for kind, data in LARGE.items()
    }
    return units | more | shared | {
        "marks": b"\x80\4" + b"(" * _ROOM + b".",
        "memo at falling numbers": b"\x80\4N"
        + b"".join(b"r" + struct.pack("<I", n) for n in range(_ROOM // 5, 0, -1)) + b".",
        "memo at rising numbers": b"\x80\4N"
        + b"".join(b"r" + struct.pack("<I", n) for n in range(_ROOM // 5)) + b".",
        "one long integer": b"\x80\4\x8b" + struct.pack("<i", _ROOM) + b"\x7f" * _ROOM + b".",
        "one long decimal": b"L" + b"9" * _ROOM + b"L\n.",
        "one long float": b"F" + b"9" * _ROOM + b"\n.",
        "one long line": b"(S'" + b"\\x41" * (_ROOM // 4) + b"'\nl.",
        "one long name": b"c" + b"a." * (_ROOM // 2) + b"\nb\n.",
        "one long text": b"\x80\4X" + struct.pack("<I", _ROOM) + b"\xc2\x80" * (_ROOM // 2) + b".",
        "builds of one object": b"\x80\4" + SYSTEM + b"h\0)R" + b"}b" * (_ROOM // 2) + b".",
        "elements of one object": b"\x80\4" + SYSTEM + b"h\0)R" + b"Na" * (_ROOM // 2) + b".",
        "items of one object": b"\x80\4" + SYSTEM + b"h\0)R" + b"NNs" * (_ROOM // 3) + b".",
        "elements of one list": b"\x80\4]" + b"Na" * (_ROOM // 2) + b".",
        "elements in handfuls": b"\x80\4]" + b"(NNe" * (_ROOM // 4) + b".",
        "members of one set": b"\x80\4\x8f" + b"(N\x90" * (_ROOM // 3) + b".",
        "items in handfuls": b"\x80\4}" + b"(NNu" * (_ROOM // 4) + b".",
        "changes of a class": b"\x80\4" + SYSTEM + b"h\0" + b"Na" * (_ROOM // 2) + b".",
        "distinct names, text": b"\x80\4(" + _many(b"\x8c\5%05x\x8c\1a\x93") + b"l.",
        "distinct names, called": b"\x80\4(" + _many(b"c%05x\na\n)R") + b"l.",
        "distinct names of modules": b"\x80\4(" + _many(b"cos\n%05x\n") + b"l.",
        "distinct names of control characters": b"\x80\4(" + _many(b"c\x1b[%05xm\n\x07\n") + b"l.",
        "distinct names of 400 characters": b"\x80\4("
        + _many(b"c%05x" + b"a" * 400 + b"\na\n") + b"l.",
        "distinct names of dots": b"\x80\4(" + _many(b"c%05x" + b"." * 400 + b"\na\n") + b"l.",
        "distinct names of one long module": b"\x80\4X" + struct.pack("<I", 1 << 16)
        + b"a" * (1 << 16) + b"q\x000(" + _many(b"h\0\x8c\5%05x\x93")[: _ROOM // 20 * 10] + b"l.",
        "distinct names of script classes": b"\x80\4(" + _many(b"c__torch__.%05x\na\n)R") + b"l.",
        "distinct extension codes": b"\x80\4("
        + b"".join(b"\x84" + struct.pack("<i", n) for n in range(1, _ROOM // 5)) + b"l.",
        "nested pickles": b"\x80\4(" + b"C\4\x80\4N." * (_ROOM // 6) + b"l.",
        "nested pickles, called": b"\x80\4" + SYSTEM + b"("
        + b"h\0C\4\x80\4N.\x85R" * (_ROOM // 10) + b"l.",
        "nested pickles that call": b"\x80\4(" + (b"C\x0e\x80\4cos\nabcd\n)R." * (_ROOM // 16)) + b"l.",
        "nested texts": b"\x80\4(" + _many(b"\x8c\7\xc2\x80%05x") + b"l.",
        "nested zips": b"\x80\4(" + b"C\4PK\3\4" * (_ROOM // 6) + b"l.",
        "nested arrays": b"\x80\4(" + b"C\6\x93NUMPY" * (_ROOM // 8) + b"l.",
        "nested gzips": b"\x80\4(" + _sized(gzip.compress(b"N.", mtime=0)) * (_ROOM // 25) + b"l.",
        "nested xz": b"\x80\4(" + _sized(lzma.compress(b"N.")) * (_ROOM // 64) + b"l.",
        "pickles one after another": b"\x80\4N." * (_ROOM // 4),
        "pickles one after another that call": b"cos\na\n)R." * (_ROOM // 10),
        "tensors of 64 dimensions": keyed(b"h\0h\3R", _tensor(b"(" + b"K\1" * 64 + b"t"), 5),
        "tensors with shapes of their own": keyed(
            b"h\0(h\3" + b"K\0K\1\x85K\1\x85\x89h\2)RtR", _storage(), 22
        ),
        "tensors under a long name": _under("k" * 3900),
        "tensors under a long name, escaped": _under("\1" * 3900),
        "tensors under a long name, wide": _under("\u732b" * 1300),
        "tensors, one of a long name": b"\x80\4" + TENSOR + b"}(" + _text("k" * 4000) + b"h\0h\3R"
        + _tensors(500) + b"u." + bytes(700_000),
        "tensors, one of a wide name": b"\x80\4" + TENSOR + b"}(" + _text("\u732b" * 4000)
        + b"h\0h\3R" + _tensors(500) + b"u." + bytes(700_000),
        "tensors of 64 dimensions, as many as are read": b"\x80\4"
        + _tensor(b"(" + b"K\1" * 64 + b"t") + b"}(" + _tensors(12_000) + b"u." + bytes(700_000),
        "parameters": keyed(
            b"h\4h\5\x88h\2)R\x87R", TENSOR + b"ctorch._utils\n_rebuild_parameter\n\x940h\0h\3R\x940", 11
        ),
        "empty ordered dicts": flood(b"h\0)R", ORDERED),
        "modules in modules": b"\x80\4" + b"}K\1" * 90 + b"](" + b"}" * 200_000 + b"e" + b"s" * 90 + b".",
    }  # fmt: skip


# name -> what stands before, and what is repeated
UNITS = {
    "marks and pops": (b"", b"(0"),
    "marks and POP_MARK": (b"", b"(1"),
    "pushes and pops": (b"", b"N0"),
    "truths": (b"", b"\x88"),
    "memo put again": (b"", b"Nq\0"),
    "memo put and got by text": (b"", b"Np0\ng0\n"),
    "memo got": (b"N\x940", b"h\0"),
    "memo got of four bytes": (b"N\x940", b"j\0\0\0\0"),
    "short texts": (b"", b"\x8c\0"),
    "texts": (b"", b"X\0\0\0\0"),
    "wide texts": (b"", b"\x8d" + bytes(8)),
    "texts of one character": (b"", b"\x8c\2\xc3\xa9"),
    "texts of a line": (b"", b"V\n"),
    "texts of escapes": (b"", b"V\\u0041\n"),
    "strings": (b"", b"S''\n"),
    "strings of escapes": (b"", b"S'\\n'\n"),
    "strings of three escapes": (b"", b"S'" + b"\\x80" * 900 + b"'\n"),
    "short strings": (b"", b"U\0"),
    "short bytes": (b"", b"C\0"),
    "bytes": (b"", b"B\0\0\0\0"),
    "integers": (b"", b"K\1"),
    "integers of four bytes": (b"", b"J\0\0\0\0"),
    "integers of text": (b"", b"I1\n"),
    "truths of text": (b"", b"I01\n"),
    "long integers of text": (b"", b"L1L\n"),
    "integers of 64 digits": (b"", b"L" + b"9" * 64 + b"L\n"),
    "integers of 255 bytes": (b"", b"\x8a\xff" + b"\x7e" * 255),
    "floats": (b"", b"G" + bytes(8)),
    "floats of 300 digits": (b"", b"F" + b"9" * 300 + b"\n"),
    "frames": (b"", b"\x95" + bytes(8)),
    "protocols": (b"", b"\x80\4"),
    "references of text": (b"", b"P1\n"),
    "references of a long number": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
        + b"\x8b" + struct.pack("<i", 1024) + b"\x7f" * 1024 + b"tq\x000", b"h\0Q"),
    "references to one storage": (TENSOR, b"h\3"),
    "extension codes": (b"", b"\x82\1"),
    "out-of-band buffers": (b"", b"\x97"),
    "read-only buffers": (b"", b"N\x98"),
    "empty tuples": (b"", b")"),
    "tuples of marks": (b"", b"(t"),
    "lists of marks": (b"", b"(l"),
    "dicts of marks": (b"", b"(d"),
    "pairs": (b"", b"NN\x86"),
    "triples": (b"", b"NNN\x87"),
    "lists of one": (b"", b"]Na"),
    "lists of two": (b"", b"](NNe"),
    "dicts of one": (b"", b"}NNs"),
    "dicts of two": (b"", b"}(NNNNu"),
    "sets of one": (b"", b"\x8f(N\x90"),
    "one name": (b"", b"ca\nb\n"),
    "one name of the stack": (text("a") + b"\x940", b"h\0h\0\x93"),
    "one allowed name of the stack": (text("torch") + b"\x940" + text("Size") + b"\x940", b"h\0h\1\x93"),
    "one long name of the stack": (b"X" + struct.pack("<I", _LONG) + b"a" * _LONG + b"\x940", b"h\0h\0\x93"),
    "one long name with dots": (b"X" + struct.pack("<I", _LONG) + b"a." * (_LONG // 2) + b"\x940", b"h\0h\0\x93"),
    "one long name, called": (b"X" + struct.pack("<I", _LONG) + b"a" * _LONG + b"\x940", b"h\0h\0\x93)R"),
    "one long name, wide": (
        b"X" + struct.pack("<I", 3900) + "\u732b".encode() * 1300 + b"\x940", b"h\0h\0\x93)R"
    ),
    "calls of a dotted name": (b"ca.b\nc.d\n\x940", b"h\0)R"),
    "calls with a state": (SYSTEM, b"h\0)R}b"),
    "calls with keywords": (SYSTEM, b"h\0)}\x92"),
    "objects of a mark": (SYSTEM, b"(h\0o"),
    "sets that are called": (b"cbuiltins\nset\n\x940", b"h\0]\x85R"),
    "encoded bytes": (
        b"c_codecs\nencode\n\x940" + text("a") + text("latin1") + b"\x86\x940", b"h\0h\1R"
    ),
    "scalars": (
        b"cnumpy.core.multiarray\nscalar\n\x940cnumpy\ndtype\n" + text("f4") + b"\x89\x88\x87R\x940",
        b"h\0(h\1C\4abcdtR",
    ),
    "devices": (b"ctorch\ndevice\n\x940" + text("cpu") + b"\x940", b"h\0h\1\x85R"),
    "sizes": (b"ctorch\nSize\n\x940(" + b"K\1" * 64 + b"t\x940", b"h\0h\1\x85R"),
    "calls of one nested pickle": (SYSTEM + b"C\4\x80\4N.\x85\x940", b"h\0h\1R"),
    "calls of one nested text": (SYSTEM + b"X\xa0\x0f\0\0" + b"a" * _LONG + b"\x85\x940", b"h\0h\1R"),
}  # fmt: skip


# of values without a tensor, of which a large list is one value; with a reference in it, it is not
_FOLDED = ("dicts of two", "empty tuples", "lists of one", "lists of two", "pairs", "triples")


def _referring(head: bytes, unit: bytes) -> bytes:
    return b"\x80\4" + head + b"(" + unit * (_ROOM // len(unit)) + b"NQl."


def _visited(head: bytes, unit: bytes) -> bytes:
    """Nearly as many values as the tree may have; the reference keeps their list from folding."""
    data = b"\x80\4" + head + b"(" + unit * min(_VISITED, _ROOM // len(unit)) + b"NQl."
    return data + bytes(max(0, _ROOM - len(data)))


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _sized(data: bytes) -> bytes:
    return b"C" + bytes([len(data)]) + data


def _many(unit: bytes) -> bytes:
    """The unit, with a number in it, as often as a pickle has room."""
    return b"".join(unit % number for number in range(_ROOM // len(unit % 0)))


def _storage() -> bytes:
    """In memo 3 the reference to a storage, not a tensor's arguments."""
    return TENSOR[: TENSOR.index(b"Q") + 1].replace(ORDERED + b"((", ORDERED + b"(") + b"\x940"


def _tensor(shape: bytes) -> bytes:
    """`TENSOR` of another shape, whose strides are the same numbers."""
    return TENSOR.replace(b"K\1\x85K\1\x85", shape + shape)


def _under(name: str) -> bytes:
    """Tensors in a dict that a long name is above, as many as are read: they are tied, too."""
    ballast = MiB - 60_000
    count = (2 * MiB + ballast) // (2 * (len(name) + 6))
    start = b"\x80\4B" + struct.pack("<i", ballast) + bytes(ballast) + b"0"
    return start + TENSOR + b"}" + _text(name) + b"}(" + _tensors(count) + b"us."


# what is also cut off behind the pickle, as salvage reads it
_SALVAGED = (
    "a deep reference",
    "distinct names",
    "dicts of two",
    "instances",
    "items in handfuls",
    "references of a long number",
    "references of text",
    "tensors",
)


def _tensors(count: int) -> bytes:
    """So many keys with the same tensor, made anew for each."""
    return b"".join(b"J" + struct.pack("<i", number) + b"h\0h\3R" for number in range(count))


def _packed_storage(count: int) -> bytes:
    """An archive with a deflated storage that so many tensors share, last one first."""
    whole = torch.zeros(count << 11)
    return _deflated({f"{i}": whole[i << 11 : (i + 1) << 11] for i in reversed(range(count))})


def _far_apart(count: int) -> bytes:
    """An archive with a deflated storage, at both ends of which each tensor has an element."""
    n = 8 * MiB
    whole = torch.zeros(n)
    return _deflated({f"{i}": whole.as_strided((2,), (n - 1 - i,), i) for i in range(count)})


def _deflated(tensors: dict[str, torch.Tensor]) -> bytes:
    packed = io.BytesIO()
    torch.save(tensors, packed)
    return zips.build([zips.deflated(e) for e in zips.entries_of(packed.getvalue()).values()])


def _cut(data: bytes) -> bytes:
    """The pickle, short enough to be put into an archive."""
    return data if len(data) <= _ROOM + 1000 else data[: _ROOM + 998] + b"l."


def legacy(data: bytes) -> bytes:
    """The stream of torch before 1.6 with that pickle as its object, and one storage."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [0x1950A86A20F9469CFC6C, 1001, system]
    storages = pickle.dumps(["0"], 2) + struct.pack("<qf", 1, 0)
    return b"".join(pickle.dumps(each, 2) for each in head) + data + storages


# -- other files


def _zip(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=9) as made:
        for name, data in entries.items():
            made.writestr(zipfile.ZipInfo(name), data, method, 9)
    return file.getvalue()


def _fitted(make: Callable[[int], bytes]) -> bytes:
    """What `make` makes of a number that just has room."""
    few, more = len(make(10)), len(make(20))
    count = (MiB - few) * 10 // (more - few)
    while len(made := make(count)) > MiB:
        count -= count // 50 + 1
    return made


def _npy(shape: str = "(0,)", descr: str = "'<f4'", pad: int = 0) -> bytes:
    told = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}" + " " * pad + "\n"
    return b"\x93NUMPY\2\0" + struct.pack("<I", len(told)) + told.encode()


def _records(count: int) -> bytes:
    """A torch archive with a tensor in each of its records."""
    files = {"a/data.pkl": b"\x80\4" + _one_a_storage(count, 1), "a/version": b"3\n"}
    return _zip(files | {f"a/data/{n}": b"abcd" for n in range(count)}, zipfile.ZIP_STORED)


def _legacy_records(count: int) -> bytes:
    """A legacy file with an empty tensor in each of its storages."""
    keys = pickle.dumps([str(n) for n in range(count)], 2)
    start = legacy(b"")[: -len(pickle.dumps(["0"], 2)) - 12]
    return start + b"\x80\2" + _one_a_storage(count, 0) + keys + bytes(8 * count)


def _one_a_storage(count: int, numel: int) -> bytes:
    """A dict of so many tensors of so many elements, each in a storage of its own."""
    size = b"K" + bytes([numel])
    last = b"h\4" + size + b"tQK\0" + size + b"\x85K\1\x85\x89h\2)RtR"
    start = b"h\0((h\3h\1"
    values = (b"J" + struct.pack("<i", n) + start + text(str(n)) + last for n in range(count))
    head = TENSOR[: TENSOR.index(b"((")] + text("storage") + b"\x940" + text("cpu") + b"\x940"
    return head + b"}(" + b"".join(values) + b"u."


def _tar(members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as made:
        for name, data in members.items():
            (info := tarfile.TarInfo(name)).size = len(data)
            made.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _gguf_fields(count: int, value: bytes) -> bytes:
    """A GGUF of fields; `value` is type and content."""
    pairs = (struct.pack("<Q", 5) + b"%05x" % number + value for number in range(count))
    return b"GGUF" + struct.pack("<IQQ", 3, 0, count) + b"".join(pairs)


def _in_each_other(depth: int, inner: bytes) -> bytes:
    for _ in range(depth):
        inner = _zip({"a/data.pkl": inner})
    return inner


def _st(entries: object) -> bytes:
    return header(json.dumps(entries, separators=(",", ":")))


_STRUCT = struct.Struct("<I")
FILES: dict[str, Callable[[], bytes]] = {
    "records with tensors": lambda: _fitted(_records),
    "legacy storages": lambda: _fitted(_legacy_records),
    "tar of empty files": lambda: _tar({f"{n}": b"" for n in range(2000)}),
    "tar of pickles": lambda: _tar({f"{n}": b"\x80\4N." for n in range(1000)}),
    "tar of long names": lambda: _tar({"a" * 3000 + f"{n}": b"" for n in range(180)}),
    "tar of pax names": lambda: _tar(
        {"a/" * 1000 + f"{n}": b"" for n in range(150)}, tarfile.PAX_FORMAT
    ),
    "tar in a gzip": lambda: gzip.compress(_tar({f"{n:030}": b"" for n in range(20_000)}), 9),
    "torch tar of tensors": lambda: _torch_tar(12_000),
    "torch tar of empty tuples": lambda: bytes(test_tar_reader.tar({
        **test_tar_reader.PARTS,
        "tensors": b"J" + struct.pack("<i", 50_000) + b"." + (b")." + bytes(16)) * 50_000,
    })),
    "gzip of zeros": lambda: gzip.compress(bytes(900 * MiB), 9)[:MiB],
    "zlib of zeros": lambda: zlib.compress(bytes(900 * MiB), 9)[:MiB],
    "gzip of opcodes": lambda: gzip.compress(b"\x80\4" + b"N0" * (100 * MiB) + b"N.", 9),
    "gzip of marks": lambda: gzip.compress(b"\x80\4" + b"(" * (100 * MiB) + b".", 9),
    "gzip of memo": lambda: gzip.compress(b"\x80\4N" + b"\x94" * (100 * MiB) + b".", 9),
    "gzip of names": lambda: gzip.compress(b"\x80\4" + b"ca\nb\n0" * (10 * MiB) + b"N.", 9),
    "gzip of calls": lambda: gzip.compress(b"\x80\4" + b"ca\nb\n)R0" * (10 * MiB) + b"N.", 9),
    "gzip of one text": lambda: gzip.compress(
        b"\x80\4X" + struct.pack("<I", 100 * MiB) + b"a" * (100 * MiB) + b"."),
    "gzip of one line": lambda: gzip.compress(b"V" + b"a" * (100 * MiB) + b"\n.", 9),
    "gzip of a written pickle": lambda: gzip.compress(
        b"S'\\x80\\x04" + b"\\x80" * (12 * MiB) + b"'\n."),
    "gzip of safetensors brackets": lambda: gzip.compress(header('{"a":[' + "[]," * (20 * MiB))),
    "gzip of braces": lambda: gzip.compress(b"{" * (100 * MiB), 9),
    "opcodes beside noise": lambda: _beside_noise(b"\x80\4" + b"N0" * MiB + b"N."),
    "names beside noise": lambda: _beside_noise(b"\x80\4" + b"ca\nb\n0" * MiB + b"N."),
    "calls beside noise": lambda: _beside_noise(b"\x80\4" + b"ca\nb\n)R0" * MiB + b"N."),
    "sets beside noise": lambda: _beside_noise(b"\x80\4" + b"(\x910" * MiB + b"N."),
    "memo beside noise": lambda: _beside_noise(b"\x80\4N" + b"q\0" * MiB + b"."),
    "texts beside noise": lambda: _beside_noise(b"\x80\4" + b"\x8c\2ab0" * MiB + b"N."),
    "numbers beside noise": lambda: _beside_noise(b"\x80\4" + b"I1\n0" * MiB + b"N."),
    "items beside noise": lambda: _beside_noise(b"\x80\4}" + b"NNs" * MiB + b"."),
    "packed storage of many tensors": lambda: _packed_storage(4000),
    "packed storage, elements far apart": lambda: _far_apart(4000),
    "bzip2 of zeros": lambda: bz2.compress(bytes(200 * MiB)),
    "bzip2 of small streams": lambda: bz2.compress(b"N") * (MiB // len(bz2.compress(b"N"))),
    "gzip of small streams": lambda: gzip.compress(b"N") * (MiB // len(gzip.compress(b"N"))),
    "gzip of empty streams": lambda: gzip.compress(b"") * (MiB // len(gzip.compress(b""))),
    "xz of empty streams": lambda: lzma.compress(b"") * (MiB // len(lzma.compress(b""))),
    "bzip2 of opcodes": lambda: bz2.compress(b"\x80\4" + b"N0" * (2 * MiB) + b"N."),
    "xz of opcodes": lambda: lzma.compress(b"\x80\4" + b"N0" * (100 * MiB) + b"N."),
    "xz of a large dictionary": lambda: lzma.compress(bytes(64 * MiB), preset=9),
    "xz of noise": lambda: lzma.compress(_noise(MiB - 1000)),
    "bzip2 of noise": lambda: bz2.compress(_noise(900_000)),
    "gzip of noise": lambda: gzip.compress(_noise(MiB - 1000)),
    "gzip of noise, damaged": lambda: gzip.compress(_noise(MiB - 1000))[:-100] + b"\xff" * 100,
    "noise": lambda: _noise(MiB),
    "zip of zips": lambda: _fitted(lambda n: _zip({f"{i}.zip": _zip({"a": b""}) for i in range(n)})),
    "zips in each other": lambda: _in_each_other(9, b"\x80\4" + b"N0" * MiB + b"N."),
    "zip of pickles": lambda: _fitted(lambda n: _zip({f"{i}": b"\x80\4N." for i in range(n)}, 0)),
    "zip of deflated pickles": lambda: _fitted(lambda n: _zip({f"{i}": b"\x80\4N." for i in range(n)})),
    "zip of deflated zeros": lambda: _fitted(lambda n: _zip({f"{i}": bytes(100_000) for i in range(n)})),
    "zip of deflated opcodes": lambda: _fitted(
        lambda n: _zip({f"{i}": b"\x80\4" + b"N0" * 20_000 for i in range(n)})),
    "zip of gzips": lambda: _fitted(
        lambda n: _zip({f"{i}": gzip.compress(b"\x80\4N.", mtime=0) for i in range(n)}, 0)),
    "torch zip of code": lambda: _fitted(
        lambda n: _zip({"a/data.pkl": b"N.", "a/constants.pkl": b"N."}
                       | {f"a/code/{i}": b"" for i in range(n)}, 0)),
    "zip of wide names": lambda: _fitted(
        lambda n: _zip({"a/data.pkl": b"N."} | {"a/" + "\u0130" * 1000 + f"{i}": b"" for i in range(n)}, 0)),
    "zip of decomposed names": lambda: _fitted(
        lambda n: _zip({"a/data.pkl": b"N."} | {"a/" + "\u0301\u0327" * 900 + f"{i}": b"" for i in range(n)}, 0)),
    "npz of empty arrays": lambda: _fitted(lambda n: _zip({f"{i}.npy": _npy() for i in range(n)}, 0)),
    "npz of deflated arrays": lambda: _fitted(lambda n: _zip({f"{i}.npy": _npy() for i in range(n)})),
    "npz of deflated long headers": lambda: _fitted(
        lambda n: _zip({f"{i}.npy": _npy(pad=9_900) for i in range(n)})),
    "npz of 64 dimensions": lambda: _fitted(
        lambda n: _zip({f"{i}.npy": _npy("(" + "0, " * 64 + ")") for i in range(n)})),
    "npz of large arrays": lambda: _fitted(
        lambda n: _zip({f"{i}.npy": _npy("(25000000,)", "'|b1'") + bytes(25_000_000) for i in range(n)})),
    "npz of objects": lambda: _fitted(
        lambda n: _zip({f"{i}.npy": _npy(descr="'|O'") + b"\x80\4N." for i in range(n)}, 0)),
    "npy of one long header": lambda: _npy(pad=MiB - 200),
    "npy of a long shape": lambda: _npy("(" + "1, " * 340_000 + ")"),
    "npy of a long number": lambda: _npy("(" + "9" * (MiB - 200) + ",)"),
    "npy of a long type": lambda: _npy(descr="'" + "<" * (MiB - 200) + "'"),
    "npy of objects": lambda: _npy(descr="'|O'") + known.PICKLES["nulls"][: MiB - 1000],
    "safetensors of 64 dimensions": lambda: _fitted(
        lambda n: _st({f"{i}": EMPTY | {"shape": [0] * 64} for i in range(n)})),
    "safetensors of long names": lambda: _fitted(
        lambda n: _st({f"{i}" + "a" * 4000: EMPTY for i in range(n)})),
    "safetensors of short names, one long": lambda: _fitted(
        lambda n: _st({"a" * 100_000: EMPTY} | {f"{i}": EMPTY for i in range(n)})),
    "safetensors of short names, one long and wide": lambda: _fitted(
        lambda n: _st({"\u732b" * 100_000: EMPTY} | {f"{i}": EMPTY for i in range(n)})),
    "safetensors of metadata": lambda: _fitted(
        lambda n: _st({"__metadata__": {f"{i}": "" for i in range(n)}})),
    "safetensors of long metadata": lambda: _st({"__metadata__": {"a": "\u732b" * 170_000}}),
    "safetensors of aliases": lambda: _fitted(
        lambda n: _st({"a": EMPTY, "__metadata__": {f"{i}": "a" for i in range(n)}})),
    "safetensors of many keys": lambda: header("{" + ",".join(f'"{n:x}":0' for n in range(MiB // 10)) + "}"),
    "safetensors of escapes": lambda: header('{"' + "\\u0041" * (MiB // 6 - 10) + '":0}'),
    "safetensors of numbers": lambda: header('{"a":[' + "1," * (MiB // 2 - 10) + "1]}"),
    "safetensors of a long number": lambda: header('{"a":' + "1" * (MiB - 20) + "}"),
    "safetensors of zeros": lambda: header("{" + " " * (MiB - 20) + "}"),
    "safetensors of surrogates": lambda: header('{"a":"' + "\\ud83d\\ude00" * (MiB // 12 - 10) + '"}'),
    "gguf of fields": lambda: _fitted(lambda n: _gguf_fields(n, _STRUCT.pack(0) + b"\1")),
    "gguf of texts": lambda: _fitted(lambda n: _gguf_fields(n, _STRUCT.pack(8) + bytes(8))),
    "gguf of floats": lambda: _fitted(
        lambda n: _gguf_fields(n, _STRUCT.pack(6) + struct.pack("<f", 0.1))),
    "gguf of arrays": lambda: _fitted(
        lambda n: _gguf_fields(n, struct.pack("<IIQ8f", 9, 6, 8, *(0.1,) * 8))),
    "gguf of empty arrays": lambda: _fitted(
        lambda n: _gguf_fields(n, struct.pack("<IIQ", 9, 8, 0))),
    "gguf of one long text": lambda: _gguf_fields(
        1, struct.pack("<IQ", 8, MiB - 100) + b"\xff" * (MiB - 100)
    ),
    "gguf of one long array": lambda: _gguf_fields(
        1, struct.pack("<IIQ", 9, 0, MiB - 100) + b"\1" * (MiB - 100)
    ),
    "gguf of unknown types": lambda: gguf_of(known.NUMBERED[:25_000]).replace(
        struct.pack("<IQIQ", 1, 0, 0, 0), struct.pack("<IQIQ", 1, 0, 99, 0)
    ),
    "text": lambda: b"a\n" * (MiB // 2),
    "html": lambda: b"<html>" + b"<" * (MiB - 10),
    "json": lambda: b"[" * MiB,
    "a json of numbers": lambda: b"[" + b"1," * (MiB // 2 - 2) + b"1]",
    "end of a zip behind": lambda: b"\x80\4" + b"PK\5\6" * (MiB // 4 - 1),
    "ends of zips behind text": lambda: b"PK\1\2PK\3\4PK\5\6" * (MiB // 12),
}  # fmt: skip


def _beside_noise(data: bytes) -> bytes:
    """An archive of a deflated pickle which, for its opcodes, has the size of the whole."""
    noise = Entry("archive/data/0", _noise(MiB - 20_000 - len(data) // 400))
    return zips.build([zips.deflated(Entry("archive/data.pkl", data)), noise])


def _noise(nbytes: int) -> bytes:
    import random

    return random.Random(0).randbytes(nbytes)


def _torch_tar(count: int) -> bytes:
    """Torch's tar of one storage and many tensors of it."""
    numbers = range(1, count + 1)
    parts = {
        **test_tar_reader.PARTS,
        "storages": test_tar_reader.storages((0, torch.FloatStorage, "f", [0.0])),
        "tensors": test_tar_reader.tensors(
            *((number, 0, torch.FloatTensor, (), (), 0) for number in numbers)
        ),
        "pickle": test_tar_reader.pickled({n: test_tar_reader.Reference(n) for n in numbers}),
    }
    return bytes(test_tar_reader.tar(parts))


# -- folders


def _index(names: dict[str, str], **more: object) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": names, **more}, separators=(",", ":")).encode()


def _row(file: str) -> dict[str, object]:
    return {"file": file, "dtype": "float32", "shape": [0], "strides": [1], "start": 0,
            "byteorder": "little", "sha256": "0" * 64, "crc32": "0" * 8}  # fmt: skip


def _mapping(count: int, **more: object) -> bytes:
    told = {"format": "cgpt-convert parameters 1", "exotic": {}, "metadata": {}, **more}
    rows = {f"{n}": _row(f"{n % 50}") for n in range(count)}
    return json.dumps({**told, "tensors": rows}).encode()


def _sidecar(count: int) -> bytes:
    rows = {f"{n}": {"file": f"{n}.npy", "dtype": "float32", "shape": [0]} for n in range(count)}
    return json.dumps({"files": rows, "aliases": {}, "metadata": {}}).encode()


def _lock(count: int) -> bytes:
    """A lock of very many tensors, made as ours are."""
    rows = {f"{n:x}": LockedTensor("float32", (0,), "0" * 64, f"{n:x}") for n in range(count)}
    digest = listed({name: row.sha256 for name, row in rows.items()})
    return encoded(Lock(digest, "", "", (), rows, None))


_ONE = {
    "model.safetensors": _st({"wte.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
}
FOLDERS: dict[str, Callable[[], Folder]] = {
    "index, names in one shard": lambda: {
        "x.index.json": _index({f"{n:x}": "x.safetensors" for n in range(35_000)}),
        "x.safetensors": _st({"a": EMPTY}),
    },
    "index, shards that are missing": lambda: {
        "x.index.json": _index({f"{n:x}": f"{n:x}" for n in range(60_000)})
    },
    "index, brackets": lambda: {"x.index.json": b'{"weight_map":' + b"[" * (MiB - 50)},
    "index, lists": lambda: {"x.index.json": b'{"weight_map":[' + b"[]," * (MiB // 3 - 10) + b"[]]}"},
    "index, a long number": lambda: {"x.index.json": b'{"a":' + b"1" * (MiB - 50) + b"}"},
    "index, shards": lambda: {
        "x.index.json": _index({f"{n:x}": f"{n:x}" for n in range(6000)}),
        **{f"{n:x}": _st({f"{n:x}": EMPTY}) for n in range(6000)},
    },
    "config, brackets": lambda: _ONE | {"config.json": b"[" * (MiB - 1000)},
    "config, keys": lambda: _ONE | {
        "config.json": json.dumps({f"{n:x}": n for n in range(60_000)}).encode()
    },
    "config, a long number": lambda: _ONE | {"config.json": b'{"n_layer":' + b"1" * (MiB - 1000) + b"}"},
    "config, a long text": lambda: _ONE | {"config.json": b'{"model_type":"' + b"\xe7\x8c\xab" * 300_000 + b'"}'},
    "mapping, tensors": lambda: {
        "mapping.json": _mapping(4500), **{f"{n}": b"" for n in range(50)}
    },
    "mapping, missing": lambda: {"mapping.json": _mapping(4500)},
    "mapping, brackets": lambda: {"mapping.json": b"[" * MiB},
    "mapping, metadata": lambda: {
        "mapping.json": _mapping(0, metadata={f"{n:x}": "" for n in range(80_000)})
    },
    "sidecar, arrays": lambda: {
        "tensors.json": _sidecar(2000), **{f"{n}.npy": _npy() for n in range(2000)}
    },
    "arrays": lambda: {f"{n}.npy": _npy() for n in range(2000)},
    "sidecar, missing": lambda: {"tensors.json": _sidecar(14_000)},
    "lock, tensors": lambda: {"lock.json": _lock(8400)} | _ONE,
    "lock, brackets": lambda: {"lock.json": b"[" * (MiB - 1000)} | _ONE,
    "lock, keys": lambda: {
        "lock.json": b"{" + b",".join(b'"%x":0' % n for n in range(MiB // 10)) + b"}"
    } | _ONE,
}  # fmt: skip


def write(folder: str) -> None:
    """Write each flood to a folder of its name, in the new one called `folder`."""
    for name, make in floods().items():
        files = make()
        small = sum(map(len, files.values())) <= MiB or len(files) > 1
        if not small:
            raise ValueError(f"{name}: {sum(map(len, files.values())):,} bytes")
        (place := Path(folder) / name).mkdir(parents=True)
        for file, data in files.items():
            (place / file).write_bytes(data)

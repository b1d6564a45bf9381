"""Files of every known class that makes a loader run code, each built by a few lines.

What they would run is harmless (`echo hostile`, or a colour that is computed). The scanner must
fail on each of them; `python -m fuzz.scoreboard` compares it with other scanners.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from random import Random
from typing import NamedTuple

from fuzz import wrapping
from fuzz.programs import MAGIC, data_pickle
from tests.helpers import zips
from tests.helpers.hostile_pickles import DANGEROUS, FOREIGN, long, payload, short
from tests.helpers.zips import Entry

UNMARKED = b"cos\nsystem\n(S'echo hostile'\ntR."
MARKED = b"\x80\2" + UNMARKED
# ends in an error after a call that is made by an allowed function
BROKEN = b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncbuiltins\nint\n(Vecho\ntNtR"
STATE = b"ccollections\nOrderedDict\n)R}Vappend\ncos\nsystem\nsbVecho hostile\na"
NOTHING = b"\x80\2N."
_RAW = MAGIC.to_bytes(10, "little")


class Hostile(NamedTuple):
    """A class of hostile files: its name, what such a file is called, and one of them."""

    group: str
    title: str
    file: str
    make: Callable[[], bytes]


def classes() -> list[Hostile]:
    """Return every class."""
    groups = {
        "Pickle": (_pickles(), ".pkl"),
        "Names that scanners have missed": (_names(), ".pkl"),
        "Allowed names put to other uses": (_misused(), ".pkl"),
        "Torch's legacy stream": (_legacy(), ".pt"),
        "Compression": (_compressed(), ".pkl.gz"),
        "Arrays": (_arrays(), ".npy"),
        "Zip": (_zips(), ".pt"),
        "Tar": (_tars(), ".pt"),
        "Containers of code": (_code(), ".pt"),
        "Configuration": (_configuration(), ".json"),
    }
    return [
        Hostile(group, title, file if "." in file else file + suffix, make)
        for group, (entries, suffix) in groups.items()
        for (title, file), make in entries.items()
    ]


# names that no loader can import, so that it fails before it does anything
_NOT_THERE = (
    *("TorchScript's names outside of one", "the result of a call", "a state of bytes", "a class"),
    *("a name alone", "an extension code", "an allowed name with a space"),
)

Makers = Mapping[tuple[str, str], Callable[[], bytes]]


def _given(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _pickles() -> Makers:
    known = {
        (title, "model"): _given(data)
        for title, (data, _) in (*DANGEROUS.items(), *FOREIGN.items())
        if title not in _NOT_THERE
    }
    nines, zeros = b"9" * 70, b"0" * 70
    # C's unpickler drops the rest of the frame: the text begins behind it, and ends with B...
    over = b"\x95" + struct.pack("<Q", 9000) + b"N0" * 4495 + b"X\x40\0\0\0xxxxx"
    over += b"y" * 59 + b"B" + struct.pack("<I", 1 + len(UNMARKED)) + b"0" + UNMARKED
    return known | {
        ("without PROTO", "model"): _given(UNMARKED),
        ("without PROTO, ends in an error after a call", "model"): _given(BROKEN + b"\xff"),
        ("without PROTO, ends in an error after an import", "model"): _given(b"cos\nsystem\n\xff"),
        ("a method replaced, then called by APPEND", "model.bin"): _given(STATE),
        ("behind a complete pickle without PROTO", "model"): _given(b"N." + UNMARKED),
        ("behind many pickles", "model"): _given(NOTHING * 9 + MARKED),
        ("behind a memo index of 70 digits", "model"): _given(b"Np" + nines + b"\n0" + UNMARKED),
        ("behind a memo index with zeros", "model"): _given(
            b"(lp" + zeros + b"1\ng1\n00" + UNMARKED
        ),
        ("a name from Python 2's memo of texts", "model"): _given(
            b"Vsystem\np07\n0Vos\ng07\n\x93(S'echo'\ntR."
        ),
        ("a name with escapes", "model"): _given(b"V\\u006fs\nVsyst\\u0065m\n\x93(S'echo'\ntR."),
        ("a name with escapes of STRING", "model"): _given(
            b"S'\\x6fs'\nS'syst\\x65m'\n\x93(S'echo'\ntR."
        ),
        ("a name that is not printable", "model"): _given(b"c\xc2\x85\nx\n(tR."),
        ("a frame that ends in an argument", "model"): _given(b"\x80\4" + over),
        ("the same without PROTO", "model"): _given(over),
        ("10 million opcodes before it", "model"): lambda: b"N0" * 6_000_000 + UNMARKED,
        ("a text that ends within an import", "model"): _given(b"ctorch.utils\n"),
        ("in a pickle in bytes, 3 deep", "model"): _given(_in_bytes(_in_bytes(_in_bytes(MARKED)))),
        ("in text encoded as latin-1", "model"): _given(
            b"\x80\2cpickle\nloads\n" + long(payload(2).decode("latin-1")) + b"\x85R."
        ),
    }


def _in_bytes(data: bytes) -> bytes:
    return (
        b"\x80\3ctorch.storage\n_load_from_bytes\nB"
        + struct.pack("<I", len(data))
        + data
        + b"\x85R."
    )


def _names() -> Makers:
    names = (
        *("uuid._get_command_stdout", "imaplib.IMAP4_stream", "_pyrepl.pager.pipe_pager"),
        *("_osx_support._read_output", "_aix_support._read_cmd_output", "profile.run"),
        *("test.support.script_helper.assert_python_ok", "logging.FileHandler", "types.CodeType"),
        *("cloudpickle.cloudpickle._make_function", "pkgutil.resolve_name", "runpy.run_path"),
        *("_interpreters.create", "torch.jit.unsupported_tensor_ops.execWrapper", "six.exec_"),
        *("torch.ops.load_library", "torch.hub.load", "numpy.testing._private.utils.runstring"),
        *("asyncio.unix_events:_UnixSubprocessTransport._start", "ctypes.CDLL", "bdb:Bdb.run"),
        *("code.InteractiveInterpreter", "timeit.timeit", "trace:Trace.run", "dill.loads"),
        *("operator.methodcaller", "functools.partial", "builtins.getattr", "webbrowser.open"),
        *("importlib.import_module", "sys.setprofile", "pip.main", "doctest.debug_script"),
        *("idlelib.pyshell.ModifiedInterpreter", "torch.distributed.rpc.rpc_sync", "joblib.load"),
        *("torch._inductor.codecache.compile_file", "pandas.eval", "pydoc.pipepager"),
        *("cProfile.runctx", "linecache.getline"),
    )  # fmt: skip
    return {(f"`{name}`", "model"): _given(_calling(name)) for name in names}


def _calling(dotted: str) -> bytes:
    module, _, name = dotted.rpartition(":" if ":" in dotted else ".")
    return b"\x80\4" + short(module) + short(name) + b"\x93" + short("x") + b"\x85R."


def _misused() -> Makers:
    layout = b"ctorch.serialization\n_get_layout\n"
    dtype = b"cnumpy\ndtype\n(VO\n\x89\x88tR"
    array = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tC\1btR"
    objects = array + b"(K\1(K\1t" + dtype + b"\x89](Netb"
    buffer = b"cnumpy._core.numeric\n_frombuffer\n"
    ordered = b"ccollections\nOrderedDict\n)R"
    cases = {
        "memory read through an array of objects": buffer
        + b"(" + objects + b"cnumpy\ndtype\n(Vi8\n\x89\x88tR(K\1tVC\ntR.",
        "numbers read from an array of objects": b"cnumpy\nndarray\n((K\1tcnumpy\ndtype\n"
         b"(Vi8\n\x89\x88tR" + objects + b"tR.",
        "items set in an array": buffer
        + b"(C\4abcdcnumpy\ndtype\n(Vu1\n\x89\x88tR(K\4tVC\ntRK\0K\1s.",
        "a function as the rebuilding one": b"ctorch._tensor\n_rebuild_from_type_v2\n("
        + layout + b"N(Vtorch.strided\ntNtR.",
        "a computed function as the rebuilding one": b"ctorch._tensor\n_rebuild_from_type_v2\n("
        + layout + b"(Vtorch.strided\ntRN(V1\ntNtR.",
        "a state set on a function": layout + b"}Vcache\n}sb.",
        "a state set on a class": b"ccollections\nOrderedDict\n}Vx\nK\1sb.",
        "a pointer as allocator": b"\x80\4ctorch.storage\nUntypedStorage\n)}Vallocator\nK\1s\x92.",
        "keyword arguments": b"\x80\4ctorch.nn.parameter\nParameter\n)}Va\nK\1s\x92.",
        "a function as an argument": b"cbuiltins\nset\n(](" + layout + b"etR.",
        "a function as a default factory": b"ccollections\ndefaultdict\n(" + layout + b"tR.",
        "`__setstate__` replaced": ordered + b"}V__setstate__\n" + layout + b"sbVtorch.strided\nb.",
        "`append` replaced": ordered + b"}Vappend\n" + layout + b"sbVtorch.strided\na.",
        "`__class__` replaced": ordered + b"}V__class__\nccollections\nCounter\nsb.",
    }  # fmt: skip
    return {(title, "model"): _given(data) for title, data in cases.items()}


def _legacy() -> Makers:
    rest = (b"\x80\2M\xe9\3.", b"\x80\2}.", b"\x80\2}.", b"\x80\2].")
    magic = b"\x80\2\x8a\n" + _RAW + b"."
    spelled = {
        "hexadecimal": b"L" + hex(MAGIC).encode() + b"L\n.",
        "octal": b"L0o%oL\n." % MAGIC,
        "decimal": b"I%d\n." % MAGIC,
        "underscores": b"I1_%s\n." % str(MAGIC)[1:].encode(),
        "LONG4": b"\x80\2\x8b\n\0\0\0" + _RAW + b".",
        "256 bytes of LONG1": b"\x8a\xff" + _RAW + bytes(245) + b".",
        "behind other values": b"N0" * 60 + b"\x8a\n" + _RAW + b".",
        "behind PROTO and other values": b"\x80\2" + b"N0" * 60 + b"\x8a\n" + _RAW + b".",
        "from the memo": b"\x8a\n" + _RAW + b"q\0000h\0.",
    }
    found: dict[tuple[str, str], Callable[[], bytes]] = {
        (f"magic number spelled: {how}", "model"): _given(number + b"".join(rest[:2]) + MARKED)
        for how, number in spelled.items()
    }
    for place, number in (("second", 0), ("third", 1), ("fourth", 2), ("fifth", 3)):
        parts = list(rest)
        parts[number] = UNMARKED
        found[f"in the {place} pickle", "model"] = _given(magic + b"".join(parts))
    found["in a sixth pickle", "model"] = _given(magic + b"".join(rest) + MARKED)
    found["the number in another spelling, and the call behind it", "model"] = _given(
        spelled["hexadecimal"] + MARKED
    )
    return found


def _compressed() -> Makers:
    gz = gzip.compress(MARKED, mtime=0)
    alone = [{"id": lzma.FILTER_LZMA1, "dict_size": 4096, "lc": 0, "pb": 0}]
    odd = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096, "lc": 0, "pb": 4}]
    small = zlib.compressobj(9, zlib.DEFLATED, 9)
    lz4 = b"\x04\x22\x4d\x18\x60\x40\x82" + struct.pack("<I", len(MARKED) | 1 << 31) + MARKED
    zstd = (
        b"\x28\xb5\x2f\xfd\x20"
        + bytes((len(MARKED),))
        + (len(MARKED) << 3 | 1).to_bytes(3, "little")
    )
    return {
        ("gzip", "model.pkl.gz"): _given(gz),
        ("gzip of what ends in an error", "model.pkl.gz"): _given(gzip.compress(BROKEN, mtime=0)),
        ("gzip with a wrong header checksum", "model.pkl.gz"): _given(
            gz[:3] + b"\2" + gz[4:10] + b"\xde\xad" + gz[10:]
        ),
        ("gzip with reserved flags", "model.pkl.gz"): _given(gz[:3] + b"\x80" + gz[4:]),
        ("gzip with zeros between its members", "model.pkl.gz"): _given(
            gzip.compress(b"\x80\2N0", mtime=0) + bytes(9) + gzip.compress(UNMARKED, mtime=0)
        ),
        ("gzip that is cut", "model.pkl.gz"): _given(gz[:-9]),
        ("gzip with an odd frame inside", "model.pkl.gz"): _given(
            gzip.compress(dict(_pickles())["a frame that ends in an argument", "model"](), mtime=0)
        ),
        ("bzip2", "model.pkl.bz2"): _given(bz2.compress(MARKED)),
        ("xz", "model.pkl.xz"): _given(lzma.compress(MARKED)),
        ("xz with other properties", "model.pkl.xz"): _given(lzma.compress(MARKED, filters=odd)),
        ("lzma with other properties", "model.joblib"): _given(
            lzma.compress(MARKED, lzma.FORMAT_ALONE, filters=alone)
        ),
        ("zlib", "model.joblib"): _given(zlib.compress(MARKED)),
        ("zlib with another window", "model.joblib"): _given(
            small.compress(MARKED) + small.flush()
        ),
        ("joblib's ZF", "model.joblib"): lambda: wrapping.zfiled(Random(0), MARKED),
        ("LZ4", "model.joblib"): _given(lz4 + bytes(4)),
        ("zstd", "model.pkl.zst"): _given(zstd + MARKED),
        ("gzip in xz", "model.pkl.xz"): _given(lzma.compress(gz)),
    }


def _header(descr: str, shape: str = "(1,)") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()


def _arrays() -> Makers:
    header = _header("'|O'")
    record = _header("[('a', '<i4'), ('b', '|O')]")
    return {
        ("`.npy` of objects", "array"): _given(header + MARKED),
        ("`.npy` of objects without PROTO", "array"): _given(header + UNMARKED),
        ("`.npy` of objects, ends in an error", "array"): _given(header + BROKEN),
        ("`.npy` of records with objects", "array"): _given(record + BROKEN),
        ("`.npz` of objects", "arrays.npz"): _given(zips.build([Entry("a.npy", header + MARKED)])),
        ("`.npz` with a pickle as member", "arrays.npz"): _given(
            zips.build([Entry("a.npy", MARKED)])
        ),
    }


def _torch_records() -> dict[str, bytes]:
    import torch

    return {
        "archive/data.pkl": data_pickle({"w": torch.ones(2)}),
        "archive/byteorder": b"little",
        "archive/data/0": struct.pack("<2f", 1, 1),
        "archive/version": b"3\n",
    }


def _torch_zip(**changes: bytes) -> bytes:
    return _records(_torch_records() | _named(changes))


def _named(changes: Mapping[str, bytes]) -> dict[str, bytes]:
    """The keyword arguments as records: `__` stands for a slash, `_dot_` for a dot."""
    return {name.replace("__", "/").replace("_dot_", "."): data for name, data in changes.items()}


def _altered(entry: Entry) -> bytes:
    """A torch archive with this entry instead of its `data.pkl`."""
    records = [Entry(name, data) for name, data in _torch_records().items()]
    return zips.build([entry, *records[1:]])


def _plain_zip(data: bytes = MARKED, name: str = "model.pkl") -> bytes:
    return zips.build([Entry(name, data)])


def _zip64(before: bytes, **end: int) -> bytes:
    """A zip whose end record defers to its zip64 one, behind other bytes."""
    ends = {"count": 0xFFFF, "nbytes": 0xFFFFFFFF, "offset": 0xFFFFFFFF, "w_count": 1} | end
    central = 46 + len("model.pkl")
    ends |= {"w_nbytes": central, "w_offset": 30 + len("model.pkl") + len(MARKED)}
    return before + zips.build([Entry("model.pkl", MARKED)], zip64=True, end=ends)


def _safetensors(tail: bytes) -> bytes:
    shape = f'"shape":[{len(tail)}],"data_offsets":[0,{len(tail)}]'
    header = f'{{"a":{{"dtype":"U8",{shape}}}}}'.encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + tail


def _gguf(tail: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(8) + tail


def _zips() -> Makers:
    torch_zip = _torch_zip
    entry = Entry("archive/data.pkl", MARKED)
    legacy = b"L" + hex(MAGIC).encode() + b"L\n." + MARKED
    makers: dict[str, Callable[[], bytes]] = {
        "`data.pkl`": lambda: torch_zip(archive__data_dot_pkl=MARKED),
        "`data.pkl` that ends in an error": lambda: torch_zip(archive__data_dot_pkl=BROKEN),
        "a pickle as storage": lambda: torch_zip(archive__data__0=MARKED),
        "another pickle in the archive": lambda: torch_zip(archive__more_dot_pkl=UNMARKED),
        "a second folder with `data.pkl`": lambda: torch_zip(b__data_dot_pkl=MARKED),
        "a legacy stream as member": lambda: _plain_zip(legacy, "pytorch_model.bin"),
        "a compressed `data.pkl`": lambda: _altered(zips.deflated(entry)),
        "encryption flag in the local header": lambda: _altered(entry.but(local_flags=1)),
        "encryption flag in both headers": lambda: _altered(entry.but(flags=1)),
        "flag 0x20": lambda: _altered(entry.but(flags=0x20)),
        "flag 0x40": lambda: _altered(entry.but(flags=0x40)),
        "wrong checksum": lambda: _altered(entry.but(crc=7)),
        "another name in the local header": lambda: _altered(
            entry.but(local_name="archive/data.txt")
        ),
        "equal names": lambda: zips.build([entry.but(data=NOTHING), entry]),
        "names equal without case": lambda: zips.build(
            [entry.but(data=NOTHING), entry.but(name="archive/DATA.pkl")]
        ),
        "an unknown compression": lambda: zips.build(
            [entry.but(method=93, crc=0, nbytes=len(MARKED))]
        ),
        "behind text, with zip64 end records": lambda: _zip64(b"hello text\n"),
        "behind a script": lambda: b"#!/bin/sh\n" + _plain_zip(),
        "in a comment of another zip": lambda: zips.build(
            [Entry("a.txt", b"hello")], comment=_plain_zip()
        ),
        "behind a torch archive": lambda: torch_zip() + _plain_zip(),
        "a 7z archive": lambda: b"7z\xbc\xaf\x27\x1c" + bytes(26) + MARKED,
        "a rar archive": lambda: b"Rar!\x1a\x07\1\0" + MARKED,
        "a zip in a zip in a zip": lambda: _plain_zip(
            _plain_zip(_plain_zip(), "b.zip"), "a.zip"
        ),
    }  # fmt: skip
    found: dict[tuple[str, str], Callable[[], bytes]] = {
        (title, "model.zip" if "zip64" in title else "model"): make
        for title, make in makers.items()
    }
    found["in valid safetensors", "model.safetensors"] = lambda: _safetensors(_plain_zip())
    found["in valid safetensors, zip64", "model.safetensors"] = lambda: _safetensors(_zip64(b""))
    found["behind GGUF", "model.gguf"] = lambda: _gguf(_plain_zip())
    found["behind GGUF, zip64", "model.gguf"] = lambda: _gguf(_zip64(b""))
    found["behind a bare pickle", "model.pkl"] = lambda: NOTHING + _plain_zip()
    found["behind a tar", "model.zip"] = lambda: _tar({"a.txt": b"hello"}) + _plain_zip()
    return found


def _tar(members: dict[str, bytes]) -> bytes:
    out = b"".join(_member(name, data) for name, data in members.items())
    return out + bytes(-(len(out) + 1024) % 10240 + 1024)


def _member(
    name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def _torch_tar(first: bytes = b"", **members: bytes) -> bytes:
    """A tar of torch 0.1: each argument replaces a member, or adds to it if it is empty."""
    number = b"\x80\2K\0."
    parts = {"sys_info": _member("sys_info", b"\x80\2}.")}
    parts["storages"] = _member("storages", number + b"\x80\2].")
    parts["tensors"] = _member("tensors", number)
    parts["pickle"] = _member("pickle", b"\x80\2}.")
    return first + b"".join((parts | members).values()) + bytes(1024)


# a number of storages, one storage, and then the payload instead of the views
_STORAGES = (
    b"\x80\2K\1.\x80\2(K\1X\3\0\0\0cpuctorch\nFloatStorage\nt."
    + struct.pack("<qf", 1, 1) + MARKED
)  # fmt: skip


def _pax(**keys: str) -> bytes:
    lines = b"".join(_pax_line(key.replace("__", "."), value) for key, value in keys.items())
    return _member("px", lines, kind=tarfile.XHDTYPE)


def _pax_line(key: str, value: str) -> bytes:
    text = f" {key}={value}\n"
    size = len(text) + len(str(len(text) + 2))
    return f"{size}{text}".encode()


def _checksummed(member: bytes, checksum: bytes) -> bytes:
    return member[:148] + checksum.ljust(8, b"\0") + member[156:]


def _tars() -> Makers:
    evil = _member("pickle", MARKED)
    first = _member("a")
    total = sum(first[:148]) + 256 + sum(first[156:512])
    hidden = _member("storages", _STORAGES)
    signed = b"\xff\xfea".ljust(100, b"\0") + _member("a")[100:]
    signed_total = sum(struct.unpack("148b", signed[:148])) + 256
    signed_total += sum(struct.unpack("356b", signed[156:512]))
    linked = _member("harmless", _STORAGES)
    sized = _pax(size="512") + _pax(mtime="0") + _member("a", b"x" * 512 + hidden)
    long_name = _member("././@LongLink", b"storages\0", kind=tarfile.GNUTYPE_LONGNAME)
    return {
        ("`pickle`", "model"): lambda: _torch_tar(pickle=evil),
        ("`pickle` that ends in an error", "model"): lambda: _torch_tar(
            pickle=_member("pickle", BROKEN)
        ),
        ("behind the storages", "model"): lambda: _torch_tar(storages=hidden),
        ("`storages` that end in an error", "model"): lambda: _torch_tar(
            storages=_member("storages", BROKEN)
        ),
        ("behind the tensors", "model"): lambda: _torch_tar(
            tensors=_member("tensors", b"\x80\2K\1." + MARKED)
        ),
        ("`storages` named by a pax header", "model"): lambda: _torch_tar(
            storages=_pax(path="storages") + _member("zz", _STORAGES)
        ),
        ("the same with a slash at the end", "model"): lambda: _torch_tar(
            storages=_pax(path="storages/") + _member("zz", _STORAGES)
        ),
        ("`storages` named by a GNU header", "model"): lambda: _torch_tar(
            storages=long_name + _member("zz", _STORAGES)
        ),
        ("`storages` as a hard link", "model"): lambda: _torch_tar(
            storages=linked + _member("storages", kind=tarfile.LNKTYPE, link="harmless")
        ),
        ("`pickle` as a symbolic link", "model"): lambda: _torch_tar(
            pickle=_member("harmless", MARKED)
            + _member("pickle", kind=tarfile.SYMTYPE, link="harmless")
        ),
        ("two pax headers, sizes that hide a member", "model"): lambda: _torch_tar(storages=sized),
        ("a type of NUL with a slash at the end", "model"): lambda: _torch_tar(
            storages=_typed_nul(hidden)
        ),
        ("signed checksum", "model"): lambda: _torch_tar(
            _checksummed(signed, b"%06o\0 " % signed_total), pickle=evil
        ),
        ("checksum with 0o", "model"): lambda: _torch_tar(
            _checksummed(first, b"0o%o" % total), pickle=evil
        ),
        ("checksum with +", "model"): lambda: _torch_tar(
            _checksummed(first, b"+%o" % total), pickle=evil
        ),
        ("checksum with _", "model"): lambda: _torch_tar(
            _checksummed(first, b"%o_%o" % divmod(total, 8)), pickle=evil
        ),
        ("a member of any tar", "model.tar"): lambda: _tar({"model.pkl": MARKED}),
        ("a member behind the end blocks", "model.tar"): lambda: (
            _tar({"a.txt": b"hello"}) + _tar({"model.pkl": MARKED})
        ),
        ("behind a header with a wrong checksum", "model"): lambda: (
            _member("a.txt").replace(b"ustar", b"USTAR") + _tar({"model.pkl": MARKED})
        ),
        ("a member of a gzipped tar", "model.tar.gz"): lambda: gzip.compress(
            _tar({"model.pkl": UNMARKED}), mtime=0
        ),
    }


def _typed_nul(data: bytes) -> bytes:
    header = bytearray(_member("a/", data))
    header[156:157] = b"\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


_LAMBDA = {
    "module": "keras",
    "class_name": "Sequential",
    "config": {
        "layers": [{"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__"}}}]
    },
}


def _records(records: Mapping[str, bytes]) -> bytes:
    return zips.build(Entry(name, data) for name, data in records.items())


def _exported(**changes: bytes) -> bytes:
    return _records(wrapping.exported_records() | _named(changes))


def _expression() -> bytes:
    records = wrapping.exported_records()
    name = next(name for name in records if b'"expr_str"' in records[name])
    old = records[name]
    start = old.index(b'"', old.index(b'"expr_str":') + 11) + 1
    text = b"__import__('colorsys').rgb_to_hls(1, 1, 1)"
    return _records(records | {name: old[:start] + text + old[old.index(b'"', start) :]})


def _pickled_constant() -> bytes:
    config = {"c": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}}
    return _exported(
        archive__data__constants__model_constants_config_dot_json=json.dumps(
            {"config": config}
        ).encode(),
        archive__data__constants__opaque_obj_0=BROKEN,
    )


def _script(line: bytes) -> bytes:
    """TorchScript whose `__setstate__`, which loading calls, runs another line."""
    records = wrapping.stateful_records()
    name = next(name for name in records if b"def __setstate__" in records[name])
    head, _, body = records[name].partition(b"def __setstate__")
    first, _, rest = body.partition(b":\n    ")  # the end of the signature
    return _records(
        records | {name: head + b"def __setstate__" + first + b":\n    " + line + b"\n    " + rest}
    )


def _packaged(**changes: bytes) -> bytes:
    records = wrapping.package_records()
    root = next(iter(records)).split("/", maxsplit=1)[0]
    return _records(records | {f"{root}/{name}": data for name, data in _named(changes).items()})


def _joblib() -> bytes:
    import joblib

    file = io.BytesIO()
    joblib.dump({"a": _Marker()}, file)
    return file.getvalue()


class _Marker:
    def __reduce__(self) -> tuple[object, ...]:
        import colorsys

        return colorsys.rgb_to_hls, (1, 1, 1)


def _code() -> Makers:
    library = b"\x7fELF\2\1\1" + bytes(57)
    ordered = b"\x80\2ccollections\nOrderedDict\n)R."
    return {
        ("TorchScript that prints when it is loaded", "model"): lambda: _script(
            b'print("hostile")'
        ),
        ("TorchScript that writes a file when it is loaded", "model"): lambda: _script(
            b'torch.save(1, "hostile")'
        ),
        ("torch.package with a pickle", "model"): lambda: _packaged(m__res_dot_pkl=MARKED),
        ("torch.package with a module that shadows `collections`", "model"): lambda: _packaged(
            collections_dot_py=b"print('hostile')\n", m__res_dot_pkl=ordered
        ),
        ("`.pt2` with an expression that is evaluated", "model.pt2"): _expression,
        ("`.pt2` with a pickled constant", "model.pt2"): _pickled_constant,
        ("`.pt2` with a native library", "model.pt2"): lambda: _exported(
            archive__data__aotinductor__model__x_dot_so=library
        ),
        ("`.pt2` with a pickle as sample input", "model.pt2"): lambda: _exported(
            archive__data__sample_inputs__model_dot_pt=MARKED
        ),
        ("Keras with a Lambda layer", "model.keras"): lambda: _records(
            {"metadata.json": b"{}", "config.json": json.dumps(_LAMBDA).encode()}
        ),
        ("HDF5", "model.h5"): _given(b"\x89HDF\r\n\x1a\n" + bytes(88) + MARKED),
        ("HDF5 behind a user block", "model.h5"): _given(
            MARKED.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(88)
        ),
        ("TorchServe's `.mar` with a handler", "model.mar"): lambda: _records(
            {"MAR-INF/MANIFEST.json": b'{"model": {"handler": "handler.py"}}',
             "handler.py": b"print('hostile')\n"}
        ),
        ("joblib", "model.joblib"): _joblib,
        ("`.metadata` of torch's distributed checkpoints", ".metadata"): _given(MARKED),
        ("a shared library as a weight file", "model.bin"): _given(library),
        ("a `.pth` file for Python's site module", "model.pth"): _given(
            b"import os; os.system('echo hostile')\n"
        ),
        ("ONNX with an external custom library", "model.onnx"): _given(
            b"\x08\x07\x12\x08hostile\x00" + bytes(20)
        ),
        ("TensorFlow's saved model", "saved_model.pb"): _given(
            b"\x08\1\x12\x0a\x0a\x08PyFunc\x00\0"
        ),
    }  # fmt: skip


_TEMPLATE = (
    "{% for c in [].__class__.__base__.__subclasses__() %}{{ c.__init__.__globals__['os']"
    ".popen('echo hostile').read() }}{% endfor %}"
)


def _gguf_template() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    fields = (("general.architecture", "llama"), ("tokenizer.chat_template", _TEMPLATE))
    body = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in fields)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(fields)) + body
    return head + bytes(-len(head) % 32)


def _configuration() -> Makers:
    remote = {"auto_map": {"AutoModel": "modeling.Model"}}
    inside = {"model_type": "llama", "_attn_implementation_internal": "someone/kernel"}
    return {
        ("chat template in `tokenizer_config.json`", "tokenizer_config.json"): _given(
            json.dumps({"chat_template": _TEMPLATE}).encode()
        ),
        ("`chat_template.jinja`", "chat_template.jinja"): _given(_TEMPLATE.encode()),
        ("`chat_template.json`", "chat_template.json"): _given(
            json.dumps({"chat_template": _TEMPLATE}).encode()
        ),
        ("chat template in GGUF", "model.gguf"): _gguf_template,
        ("`auto_map` in `config.json`", "config.json"): _given(json.dumps(remote).encode()),
        ("`auto_map` in `tokenizer_config.json`", "tokenizer_config.json"): _given(
            json.dumps({"auto_map": {"AutoTokenizer": ["tok.Tok", None]}}).encode()
        ),
        ("`_attn_implementation_internal` in `config.json`", "config.json"): _given(
            json.dumps(inside).encode()
        ),
        ("`custom_pipelines` in `config.json`", "config.json"): _given(
            json.dumps({"custom_pipelines": {"x": {"impl": "pipeline.Pipe"}}}).encode()
        ),
        ("`auto_map` in UTF-16", "config.json"): _given(json.dumps(remote).encode("utf-16")),
        ("`_target_` that Hydra calls", "config.yaml"): _given(
            b"model:\n  _target_: os.system\n  command: echo hostile\n"
        ),
        ("a tag that `yaml.unsafe_load` calls", "config.yaml"): _given(
            b"a: !!python/object/apply:os.system [echo hostile]\n"
        ),
        ("a template in YAML", "config.yaml"): _given(f'a: "{_TEMPLATE}"\n'.encode()),
    }

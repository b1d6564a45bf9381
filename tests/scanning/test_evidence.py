"""What a loader does before an error counts, wherever the stream is and whatever precedes it.

Each stream is loaded for real: it prints a word, which proves that the loader gets there.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import pickle
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgpt_convert.formats.torch.legacy_reader import MAGIC
from cgpt_convert.scanning.result import Verdict
from tests.helpers.python_pickle import PythonUnpickler
from tests.helpers.scan_files import npy, scanned, tarred, zipped
from tests.helpers.torch_save import saved, saved_legacy

PRINT = b"cbuiltins\nprint\n(Vran\ntR"
FAILS = b"\xff"

# Without PROTO, and without a call of a name that is not allowed.
UNCALLED = {
    "a function as an argument": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nprint\ncbuiltins\nint\n(Vran\ntNtR"
    ),
    "an attribute that APPEND calls": (
        b"ccollections\nOrderedDict\n(tR(dVappend\ncbuiltins\nprint\nsbVran\na"
    ),
    "an attribute that ADDITEMS calls": (
        b"ccollections\nOrderedDict\n(tR(dVadd\ncbuiltins\nprint\nsb(Vran\n\x90"
    ),
    "an attribute that BUILD calls": (
        b"ccollections\nOrderedDict\n(tR(dV__setstate__\ncbuiltins\nprint\nsbVran\nb"
    ),
}
NAMES = [  # torch is imported where Python's unpickler imports it
    pytest.param(name, marks=pytest.mark.slow if b"ctorch" in call else ())
    for name, call in UNCALLED.items()
]
ENDS = {"nothing": b"", "no opcode": FAILS, "an empty stack": b"000"}


def runs(load: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> bool:
    """Return whether the loader prints the word, whether or not it fails then."""
    capfd.readouterr()
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        load()
    return "ran" in capfd.readouterr().out


def object_npy(descr: bytes, behind: bytes) -> bytes:
    header = b"{'descr': " + descr + b", 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + behind


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", NAMES)
def test_imports_before_an_error_count(
    name: str, end: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = UNCALLED[name] + ENDS[end]
    assert runs(lambda: pickle.loads(data), capfd)
    assert scanned(data, tmp_path).verdict is Verdict.DANGEROUS


@pytest.mark.parametrize("name", NAMES)
def test_they_count_at_every_depth(name: str, tmp_path: Path) -> None:
    data = UNCALLED[name] + FAILS
    for packed in (
        gzip.compress(data),
        bz2.compress(data),
        lzma.compress(data),
        zipped({"pytorch_model.bin": data}),
        tarred({"a/model.pkl": data}),
        pickle.dumps({"a": gzip.compress(data)}),
        zipped({"a.gz": gzip.compress(data)}),
        object_npy(b"'|O'", data),
        zipped({"a.npy": object_npy(b"'O'", data), "b.npy": npy(np.ones(2))}),
    ):
        assert scanned(packed, tmp_path).verdict is Verdict.DANGEROUS


@pytest.mark.parametrize("descr", [b"'O'", b"'|O'", b"'object'", b"[('a','O')]", b"'O,i4'"])
@pytest.mark.parametrize("name", NAMES)
def test_they_count_in_arrays_of_objects(
    descr: bytes, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = object_npy(descr, UNCALLED[name])
    assert runs(lambda: np.load(io.BytesIO(data), allow_pickle=True), capfd)
    assert scanned(data, tmp_path).verdict is Verdict.DANGEROUS


def test_an_array_of_objects_that_is_no_pickle_is_malformed(tmp_path: Path) -> None:
    assert scanned(object_npy(b"'|O'", b"N0N0"), tmp_path).verdict is Verdict.MALFORMED
    assert scanned(npy(np.array([1, "a"], dtype=object)), tmp_path).verdict is Verdict.CLEAN
    assert scanned(npy(np.zeros(2, dtype=[("O", "i4")])), tmp_path).verdict is not Verdict.DANGEROUS


@pytest.mark.parametrize(
    "text",
    [
        b"cat\ndog\nbird\n",
        b"code\nblock\n",
        b"const\nfoo\n(x)\n",
        b"import sys\nimport re\n",
        b"cross-entropy\nloss\n",
        b"in\nout\n",
        b"(cat\ndog\n",
        b"VERSION 1\npython\ngo\n",
        b"isympy\nsympy\n",
        b"curl\nfoo\n",
        b"cnotorch\nnn\n",
    ],
)
def test_words_are_no_imports(text: bytes, tmp_path: Path) -> None:
    for data in (text, gzip.compress(text), zipped({"labels.txt": text})):
        assert not scanned(data, tmp_path).sightings, text
        assert scanned(data, tmp_path, name="labels.txt").verdict is Verdict.NOTHING, text


@pytest.mark.parametrize(
    "text",
    [
        b"ctorch.utils\n",
        b"ctorchS",
        b"ctorch\nnn\n",
        b"ctorch\n(\n",
        b"ccollections\n\x7f\n",
        b"cos\nsys(g7\n",
    ],
)
def test_a_text_that_imports_a_package_is_no_plain_text(text: bytes, tmp_path: Path) -> None:
    asked: list[str] = []

    class Recorder(PythonUnpickler):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> object:
            asked.append(module)
            return super().find_class(module, name)

    errors = (AttributeError, EOFError, ImportError, IndexError, pickle.UnpicklingError)
    with pytest.raises(errors):
        Recorder(io.BytesIO(text)).load()
    assert asked
    assert asked[0].startswith(("torch", "collections", "os"))
    for data in (text, gzip.compress(text), zipped({"labels.txt": text})):
        assert scanned(data, tmp_path, name="labels.txt").sightings


# -- several pickles, and the memo

MEMOS = {
    "a long index": b"Vran\np" + b"0" * 70 + b"7\n0cbuiltins\nprint\n(g7\ntR.",
    "a longer one": b"Vran\np" + b"9" * 80 + b"\n0cbuiltins\nprint\n(g" + b"9" * 80 + b"\ntR.",
    "signs and underscores": b"Vran\np+1_0\n0cbuiltins\nprint\n(g 10\ntR.",
}


@pytest.mark.parametrize("name", MEMOS)
def test_memo_indices_of_any_spelling_are_followed(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = MEMOS[name]
    assert runs(lambda: PythonUnpickler(io.BytesIO(data)).load(), capfd)
    assert scanned(data, tmp_path).verdict is Verdict.DANGEROUS


def test_so_are_those_of_python_2(tmp_path: Path) -> None:
    for put, get in ((b"pa\n", b"ga\n"), (b"p\xe9\n", b"g\xe9\n"), (b"q\1", b"g1\n")):
        data = b"Vran\n" + put + b"0cbuiltins\nprint\n(" + get + b"tR."
        assert scanned(data, tmp_path).verdict is Verdict.DANGEROUS
    assert scanned(b"\x80\2Npa\n.", tmp_path).verdict is Verdict.MALFORMED


FIRST = {
    "unmarked": b"N.",
    "several unmarked": b"N.(t.I5\n.",
    "marked": b"\x80\2N.",
    "mixed": b"\x80\4N.N.\x80\2K\1.",
    "many": b"N." * 5000,
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("name", NAMES)
def test_pickles_behind_innocent_ones_are_read(
    first: str, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = FIRST[first] + UNCALLED[name]
    file = io.BytesIO(data)

    def load() -> None:
        while True:
            pickle.load(file)

    assert runs(load, capfd)
    for packed in (data, gzip.compress(data), object_npy(b"'|O'", data), zipped({"a": data})):
        assert scanned(packed, tmp_path).verdict is Verdict.DANGEROUS


# -- legacy streams

SPELLED = {
    "hexadecimal": b"L%#xL\n." % MAGIC,
    "capitals": b"L0X%XL\n." % MAGIC,
    "octal": b"L%sL\n." % oct(MAGIC).encode(),
    "binary": b"L%sL\n." % bin(MAGIC).encode(),
    "underscores": b"L%sL\n." % f"{MAGIC:_}".encode(),
    "blanks and a sign": b"L +%d \n." % MAGIC,
    "INT": b"I%d\n." % MAGIC,
    "LONG4": b"\x8b\x0a\0\0\0" + MAGIC.to_bytes(10, "little") + b".",
    "longer than it needs": b"\x8a\x40" + MAGIC.to_bytes(64, "little") + b".",
    "behind other values": b"N0" * 500 + b"L%dL\n." % MAGIC,
    "from the memo": b"L%dL\nq\0" % MAGIC + b"0N0h\0.",
}
REST = [b"I1001\n.", b"}.", b"}.", b"]."]


def _places() -> list[list[bytes]]:
    """Streams whose second, third, ... pickle prints."""
    return [[*REST[:at], PRINT + b"."] for at in range(4)]


@pytest.mark.slow  # torch
@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("at", range(4))
def test_a_legacy_stream_is_told_by_the_value_of_its_first_pickle(
    spelled: str, at: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    data = SPELLED[spelled] + b"".join(_places()[at])
    assert runs(lambda: torch.load(io.BytesIO(data), weights_only=False), capfd)
    for packed in (data, gzip.compress(data), zipped({"pytorch_model.bin": data})):
        assert scanned(packed, tmp_path).verdict is Verdict.DANGEROUS
    broken = SPELLED[spelled] + b"".join(REST[:at]) + b"N0"
    assert scanned(broken, tmp_path).verdict is Verdict.MALFORMED


@pytest.mark.parametrize("spelled", SPELLED)
def test_what_follows_its_storages_is_read(spelled: str, tmp_path: Path) -> None:
    whole = SPELLED[spelled] + b"".join(REST)
    assert scanned(whole + PRINT + b".", tmp_path).verdict is Verdict.DANGEROUS
    legacy = saved_legacy({"w": np.full(4, 1.5, np.float32)})
    assert scanned(legacy, tmp_path).verdict is Verdict.CLEAN
    assert scanned(legacy + PRINT + b".", tmp_path).verdict is Verdict.DANGEROUS
    assert scanned(legacy + legacy, tmp_path).pickles == 10
    assert scanned(legacy + whole + PRINT + b".", tmp_path).verdict is Verdict.DANGEROUS


def test_storages_of_a_legacy_stream_are_numbers_if_it_is_well_formed(tmp_path: Path) -> None:
    legacy = saved_legacy({"w": np.frombuffer(PRINT + b"." + bytes(8), np.uint8)})
    assert scanned(legacy, tmp_path).verdict is Verdict.CLEAN
    start = legacy.index(PRINT) - 8
    unproved = legacy[:start] + legacy[start + 8 :]  # without the number of elements
    assert scanned(unproved, tmp_path).verdict is Verdict.DANGEROUS


# -- frames


def _framed(nbytes: int, data: bytes) -> bytes:
    return b"\x95" + nbytes.to_bytes(8, "little") + data


ODD = {
    "it ends inside an argument": _framed(8, b"N0N0X\x40\0\0\0" + b"x" * 64 + b"0N."),
    "another begins inside it": _framed(20, b"N0" + _framed(2, b"N0") + b"N0" * 9 + b"N."),
    "it ends behind the pickle": _framed(30, b"N.") + b"N." * 20,
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("marked", [b"", b"\x80\4"])
def test_an_odd_frame_is_an_error_in_every_role(name: str, marked: bytes, tmp_path: Path) -> None:
    data = marked + ODD[name]
    whole = saved({"w": np.frombuffer(data, np.uint8)})
    for packed in (
        data,
        gzip.compress(data),
        zipped({"a": data}),
        tarred({"a": data}),
        object_npy(b"'|O'", data),
        pickle.dumps([gzip.compress(data)]),
        whole,
        b"N." + data,
    ):
        assert scanned(packed, tmp_path).verdict is Verdict.MALFORMED, packed[:40]


def test_frames_of_pickles_are_not_odd(tmp_path: Path) -> None:
    value: Any = [list(range(99)), "x" * 70_000, [b"y" * 70_000] * 3]
    data = b"".join(pickle.dumps(value, protocol) for protocol in range(6))
    assert scanned(data, tmp_path).verdict is Verdict.CLEAN


# -- names


ESCAPED = {
    "of Unicode": b"V\\u0062uiltins\nVpri\\u006et\n\x93",
    "of bytes": b"S'\\x62uiltins'\nS'pr\\151nt'\n\x93",
    "none": b"Vbuiltins\nVprint\n\x93",
}


@pytest.mark.parametrize("name", ESCAPED)
def test_names_with_escapes_are_read(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = ESCAPED[name] + b"(Vran\ntR."
    assert runs(lambda: pickle.loads(data), capfd)
    for whole in (data, ESCAPED[name], ESCAPED[name] + FAILS):
        found = scanned(whole, tmp_path)
        assert found.verdict is Verdict.DANGEROUS
        assert found.sightings[0].name == "builtins.print"


def test_a_module_is_imported_although_its_name_is_cut_off(tmp_path: Path) -> None:
    for data in (b"cposix\n", b"\x80\2N.cposix\n", b"iposix\n", b"\x80\2cposix\nsyste"):
        assert scanned(data, tmp_path).verdict is Verdict.DANGEROUS


def test_text_of_an_array_is_no_pickle(tmp_path: Path) -> None:
    for text in (b"csc", b"csr", b"cat\ndog", b"is\n"):
        assert scanned(npy(np.array(text)), tmp_path).verdict is not Verdict.MALFORMED


def test_any_name_in_a_module_that_exists_imports_it(tmp_path: Path) -> None:
    for name in (b"7", b"a b", b"_rebui\0ld_tensor_v2", b"\x7f", b""):
        stack = b"\x8c\5posix\x8c" + bytes((len(name),)) + name + b"\x93"
        for data in (stack, b"cposix\n" + name + b"\n\0", lzma.compress(stack)):
            assert scanned(data, tmp_path).verdict is Verdict.DANGEROUS, data


@pytest.mark.parametrize("protocol", [0, 1])
@pytest.mark.parametrize("value", [{}, "", 0.5, [1, "x", None], {"a": (1, 2)}, "x" * 9000])
def test_a_plain_pickle_of_an_old_protocol_is_clean(
    value: object, protocol: int, tmp_path: Path
) -> None:
    data = pickle.dumps(value, protocol)
    for packed in (data, data * 3, zipped({"d/1.pkl": data}), tarred({"1.pkl": data})):
        assert scanned(packed, tmp_path, name="x.pkl").verdict is Verdict.CLEAN


@pytest.mark.parametrize(
    "opcodes",
    [b"(i%s\n%s\n", b"c%s\n%s\n)R", b"(P%s\no", b"P%s\n)R", b"\x82\1)R", b"N(c%s\n%s\no"],
)
def test_numbers_that_form_a_call_of_what_cannot_be_imported_are_none(
    opcodes: bytes, tmp_path: Path
) -> None:
    noise = b"=\xe0\x8b\xc4\xbc\t\x9a`\xbb\x1fH"
    data = opcodes.replace(b"%s", noise) + b"\xff" * 300
    whole = saved({"w": np.frombuffer(data, np.uint8)})
    assert scanned(whole, tmp_path).verdict is Verdict.CLEAN
    for packed in (data, zipped({"a.dat": data})):
        assert not scanned(packed, tmp_path).sightings

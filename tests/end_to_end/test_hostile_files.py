"""What a small hostile file may cost, and the classes of hostile files that other modules lack.

The numbers in names are the classes of docs/explanation/security.md; every class has a test of its
number.
"""

from __future__ import annotations

import ast
import bz2
import gzip
import json
import lzma
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open as read_safetensors

import cgpt_convert
from cgpt_convert.core.errors import CgptError, Unreadable
from cgpt_convert.core.limits import MiB
from cgpt_convert.formats.open import open_checkpoint
from tests.helpers import vendor, zips
from tests.helpers.running import ROOT, environ, run
from tests.helpers.zips import Entry

MOST_SECONDS = 4  # of one core that others use too; alone it takes about one
MOST_MIB = 256

COST = """
import resource, sys
from cgpt_convert.cli import main
code = main()
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("\\ncost:", code, used.ru_utime + used.ru_stime, int(peak.split()[1]) >> 10, file=sys.stderr)
"""


def cost(path: Path, command: str = "inspect") -> tuple[int, float, int, str]:
    """Exit code, CPU seconds, peak MiB and standard error of a command, by itself."""
    done = subprocess.run(
        [sys.executable, "-c", COST, command, "--json", path],
        check=True,
        env=environ(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    err, _, numbers = done.stderr.decode().rpartition("\ncost: ")
    code, seconds, mib = numbers.split()
    return int(code), float(seconds), int(mib), err


def archive(pickle: bytes) -> bytes:
    entries = {"data.pkl": pickle, "data/0": b"abcd", "version": b"3\n"}
    return zips.build(Entry(f"archive/{name}", data) for name, data in entries.items())


def flood(unit: bytes, head: bytes = b"", tail: bytes = b"l.") -> bytes:
    """A pickle of 1 MiB: a list of whatever the unit leaves on the stack, again and again."""
    start = b"\x80\x04" + head + b"("
    return start + unit * ((MiB - 1000 - len(start) - len(tail)) // len(unit)) + tail


def keyed(values: bytes, head: bytes = b"", size: int = 7) -> bytes:
    """A pickle of up to 1 MiB: a dict that has the value under very many keys."""
    count = (MiB - 2000) // (5 + size)
    return (
        b"\x80\x04"
        + head
        + b"}("
        + b"".join(b"J" + struct.pack("<i", number) + values for number in range(count))
        + b"u."
    )


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


ORDERED = b"ccollections\nOrderedDict\n\x940"
SYSTEM = b"cos\nsystem\n\x940"
# memo 0 to 2; then, in memo 3, the arguments of one tensor
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n\x940ctorch\nFloatStorage\n\x940" + ORDERED + b"(("
    + text("storage") + b"h\1" + text("0") + text("cpu") + b"K\1tQK\0K\1\x85K\1\x85\x89h\2)Rt\x940"
)  # fmt: skip
SPARSE = (
    b"ctorch._utils\n_rebuild_sparse_tensor\n\x940ctorch.serialization\n_get_layout\n"
    + text("torch.sparse_coo") + b"\x85Rh\0h\3R\x94h\5K\1\x85\x87\x86\x940"
)  # fmt: skip
# one for each way to make much of little: opcodes, sharing, names, tensors, text
PICKLES = {
    "lists": flood(b"]"),
    "dicts": flood(b"}"),
    "sets": flood(b"\x8f"),
    "frozen sets": flood(b"(\x91"),
    "nulls": flood(b"N"),
    "nulls that are values": flood(b"N", b"N\x85")[:-2] + b"l.",
    "nulls in a mixed list": b"\x80\x04(N\x85" + b"N" * (MiB - 20) + b"l.",
    "tuples": flood(b"N\x85"),
    "a deep tuple": b"\x80\x04N" + b"\x85" * (MiB - 10) + b".",
    "doubled tuples": b"\x80\x04N" + b"2\x86" * (MiB // 2 - 10) + b".",
    "copies": flood(b"2", b"N"),
    "memo entries": b"\x80\x04N" + b"\x94" * (MiB - 10) + b".",
    "calls": flood(b"h\0)R", SYSTEM),
    "calls of themselves": b"\x80\x04" + SYSTEM + b"h\0" + b"2R" * (MiB // 2 - 20) + b".",
    "objects": flood(b"NN\x81"),
    "instances": flood(b"(i\n\n"),
    "references": flood(b"NQ"),
    "a deep reference": b"\x80\x04N" + b"Q" * (MiB - 10) + b".",
    "references to a long line": flood(b"h\0Q", b"(" + b"]" * 100 + b"l\x940"),
    "calls with a long line": flood(b"h\0h\1R", SYSTEM + b"(" + b"K\1" * 60 + b"l\x940"),
    "shared lines": b"\x80\x04(" + b"K\1" * 60 + b"l\x940(N\x85" + b"h\0" * 500_000 + b"l.",
    "a shared list": flood(b"h\0", b"(" + b"N\x85" * (MiB // 8) + b"l\x940")[: MiB - 2] + b"l.",
    "a shared set": flood(b"h\0", b"(" + b"N\x85" * (MiB // 8) + b"\x91\x940")[: MiB - 2] + b"l.",
    "a shared ordered dict": flood(
        b"h\1", ORDERED + b"h\0(" + b"NN\x86" * (MiB // 8) + b"l\x85R\x940"
    )[: MiB - 2] + b"l.",
    "cycles": b"\x80\x04]\x94(" + b"h\0" * (MiB // 2 - 10) + b"e.",
    "items": b"\x80\x04}" + b"NNs" * (MiB // 3 - 10) + b".",
    "attributes": b"\x80\x04" + ORDERED + b"h\0)R}(" + b"NN" * (MiB // 2 - 40) + b"ub.",
    "a long key": b"\x80\x04}(X" + struct.pack("<I", MiB // 2) + b"k" * (MiB // 2) + b"(N\x85"
    + b"N" * (MiB // 2 - 100) + b"lu.",
    "keys of 4,000 characters": b"\x80\x04}(X" + struct.pack("<I", 4000) + b"\1" * 4000 + b"(N\x85"
    + b"N" * (MiB - 5000) + b"lu.",
    "short integers": flood(b"\x8a\0"),
    "long integers": flood(b"\x8b" + struct.pack("<i", 1024) + b"\xfe" * 1024),
    "decimal integers": flood(b"I" + b"9" * 4000 + b"\n")[:-2] + b"l.",
    "decimal floats": flood(b"F1\n"),
    "wide characters": flood(b"X\xec\3\0\0" + b"a" * 1000 + "\U0001f600".encode()),
    "arrays of bytes": flood(b"\x96" + bytes(8)),
    "foreign names": b"\x80\x04("
    + b"".join(b"c%x\n\n" % number for number in range(MiB // 9)) + b"l.",
    "one tensor under many keys": keyed(b"h\4", TENSOR + b"h\0h\3R\x940", 2),
    "one tensor under one key": flood(b"K\1h\4", TENSOR + b"h\0h\3R\x940}", b"u."),
    "tensors": keyed(b"h\0h\3R", TENSOR, 5),
    "sparse tensors": keyed(b"h\4h\6R", TENSOR + SPARSE, 5),
    "tensors that do not fit": flood(b"h\0)R", TENSOR),
}  # fmt: skip


@pytest.mark.parametrize("kind", PICKLES)
def test_20_a_pickle_of_1_mib_costs_little(kind: str, tmp_path: Path) -> None:
    assert len(PICKLES[kind]) <= MiB + 1000
    (path := tmp_path / "x.pt").write_bytes(archive(PICKLES[kind]))
    code, seconds, mib, err = cost(path)
    assert code in (0, 3), err
    assert "Traceback" not in err
    assert len(err) < 10_000
    assert seconds < MOST_SECONDS
    assert mib < MOST_MIB


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_of(names: list[str]) -> bytes:
    """A GGUF of empty tensors of those names."""
    infos = (
        struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQIQ", 1, 0, 0, 0)
        for name in names
    )
    return b"GGUF" + struct.pack("<IQQ", 3, len(names), 0) + b"".join(infos)


def many(count: int, name: str = "archive/data/{:x}") -> bytes:
    """An archive of very many empty records."""
    records = (Entry(name.format(number), b"") for number in range(count))
    return zips.build([Entry("archive/data.pkl", b"N."), *records])


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
NUMBERED = [f"{number:05x}" for number in range(27_000)]
FILES: dict[str, Callable[[], bytes]] = {
    "zip entries": lambda: many(9500),
    "zip entries with long names": lambda: many(250, "archive/" + "k" * 2000 + "{}"),
    "zip folders in folders": lambda: many(125, "archive/" + "k/" * 1000 + "{}"),
    "end records": lambda: b"PK\3\4" + zips.END.pack(b"PK\5\6", *(0,) * 7) * (MiB // 22),
    "a deflated pickle": lambda: zips.build(
        [zips.deflated(Entry("archive/data.pkl", b"(" + b"N" * 400 * MiB + b"l."))]
    ),
    "safetensors": lambda: header(
        json.dumps(dict.fromkeys(NUMBERED[:15000], EMPTY))
    ),
    "safetensors brackets": lambda: header('{"a":[' + "[]," * (MiB // 3 - 10) + "[]]}"),
    "a key at both ends of a header": lambda: header(
        "{" + ",".join(f'"{number:x}":0' for number in range(MiB // 10)) + ',"0":1}'
    ),
    "a late key twice": lambda: header(
        "{" + ",".join(f'"{number:x}":0' for number in range(MiB // 10)) + ',"1ffff":0,"1ffff":1}'
    ),
    "gguf tensors": lambda: gguf_of(NUMBERED),
    "a gguf name twice": lambda: gguf_of([*NUMBERED, NUMBERED[-1]]),
    "gguf strings": lambda: b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a"
    + struct.pack("<IIQ", 9, 8, MiB // 8 - 100) + bytes(MiB - 900),
    "a comment that never ends": lambda: b"<!--" * (MiB // 4),
    "braces": lambda: b"{" * MiB,
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_8_a_file_of_1_mib_costs_little(kind: str, tmp_path: Path) -> None:
    data = FILES[kind]()
    assert len(data) <= 1.1 * MiB
    (path := tmp_path / "x.bin").write_bytes(data)
    code, seconds, mib, err = cost(path)
    assert code in (0, 3), err
    assert "Traceback" not in err
    assert seconds < MOST_SECONDS
    assert mib < MOST_MIB


PACKED: dict[str, Callable[[], bytes]] = {
    "zeros by bzip2, which cannot be copied": lambda: bz2.compress(bytes(32 * MiB)),
    "zeros by xz": lambda: lzma.compress(bytes(32 * MiB), preset=0),
    "gzip in gzip": lambda: gzip.compress(gzip.compress(bytes(200 * MiB), 1), 9),
    "opcodes": lambda: zips.build(
        [zips.deflated(Entry("archive/data.pkl", b"\x80\4" + b"N0" * 3_000_000 + b"N."))]
    ),
    "opcodes in many records": lambda: zips.build(
        zips.deflated(Entry("archive/data/0", b"\x80\4" + b"N0" * 300_000)).but(name=f"archive/{n}")
        for n in range(20)
    ),
}


@pytest.mark.parametrize("kind", PACKED)
def test_8_what_is_packed_costs_a_scan_little(kind: str, tmp_path: Path) -> None:
    (path := tmp_path / "x.bin").write_bytes(PACKED[kind]())
    code, seconds, mib, err = cost(path, "scan")
    assert code in (0, 3), err
    assert "Traceback" not in err
    assert seconds < MOST_SECONDS
    assert mib < MOST_MIB


# -- classes that no other module has


def test_15_what_merely_looks_like_a_checkpoint_is_refused_by_what_it_is(tmp_path: Path) -> None:
    for start, what in (
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"<html>", "web"),
    ):
        (path := tmp_path / "pytorch_model.bin").write_bytes(start + bytes(100))
        result = run("inspect", path)
        assert result.code == 3
        assert what in result.err
        with pytest.raises(Exception, match=r".") as theirs:
            torch.load(path)
        assert what not in str(theirs.value)


def test_32_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    """A program that maps the file is killed by SIGBUS here; torch maps with mmap=True."""
    path = vendor.write(vendor.TINY, tmp_path, "hf")
    path = path / "pytorch_model.bin" if path.is_dir() else path
    checkpoint = open_checkpoint(path)
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(Unreadable, match="shorter"):
        [block.nbytes for tensor in checkpoint.values() for block in tensor.blocks()]


def test_32_a_file_that_is_replaced_while_it_is_read_stays_the_one_that_was_checked(
    tmp_path: Path,
) -> None:
    torch.save({"a": torch.zeros(4)}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    torch.save({"a": torch.ones(4)}, tmp_path / "y.pt")
    os.replace(tmp_path / "y.pt", tmp_path / "x.pt")
    assert checkpoint["a"].numpy().tolist() == [0] * 4


def test_33_a_link_in_the_place_of_the_output_is_not_followed(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4)}, tmp_path / "x.pt")
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "out.safetensors").symlink_to(tmp_path / "precious")
    result = run("convert", tmp_path / "x.pt", "-o", tmp_path / "out.safetensors")
    assert result.code != 0
    assert (tmp_path / "precious").read_text() == "keep"
    assert (tmp_path / "out.safetensors").is_symlink()


def test_34_escape_sequences_do_not_reach_the_terminal(tmp_path: Path) -> None:
    name = "\x1b]0;owned\x07\x1b[2J\u202e"
    torch.save({name: torch.zeros(4), "x": name}, tmp_path / "x.pt")
    result = run("inspect", tmp_path / "x.pt")
    assert result.code == 0
    assert r"\x1b]0;owned\x07\x1b[2J\u202e" in result.out
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", result.out + result.err)


@pytest.mark.parametrize("file", ["../x.pt", "/etc/passwd", "a/../../x.pt", "..", "a\\x.pt", ""])
def test_35_an_index_does_not_lead_out_of_its_folder(file: str, tmp_path: Path) -> None:
    (folder := tmp_path / "model").mkdir()
    torch.save({"a": torch.zeros(4)}, tmp_path / "x.pt")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": file}}))
    result = run("inspect", folder)
    assert result.code == 3
    assert "the index names shards outside its folder" in result.err


def test_36_lies_of_config_json_change_nothing_that_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4, dtype=torch.float16)}, tmp_path / "pytorch_model.bin")
    honest = run("inspect", "--json", tmp_path).json
    (tmp_path / "config.json").write_text(
        '{"torch_dtype": "float64", "n_embd": -1, "a": ' + "[" * 9
    )
    assert run("inspect", "--json", tmp_path).code in (0, 3)
    (tmp_path / "config.json").write_text('{"torch_dtype": "float64", "n_embd": 1000000}')
    assert run("inspect", "--json", tmp_path).json["tensors"] == honest["tensors"]


def test_23_the_key_that_comes_twice_is_refused_and_the_library_takes_it(tmp_path: Path) -> None:
    tensor = '"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    (path := tmp_path / "x.safetensors").write_bytes(header("{" + tensor + "," + tensor + "}"))
    with read_safetensors(path, "pt") as library:
        assert library.keys() == ["a"]
    with pytest.raises(CgptError, match="twice"):
        open_checkpoint(path)


CLASSES = range(1, 37)


def test_every_class_of_hostile_files_has_a_test() -> None:
    names = [
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    numbers = {int(match[1]) for name in names if (match := re.match(r"test_(\d+)_", name))}
    assert numbers >= set(CLASSES)


def test_nothing_in_the_package_maps_a_file() -> None:
    for path in Path(cgpt_convert.__file__).parent.rglob("*.py"):
        assert not re.search(r"import mmap|memmap|mmap_mode", path.read_text()), path

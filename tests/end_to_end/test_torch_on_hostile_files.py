"""One file of each hostile class, here and in torch: docs/explanation/security.md's table."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.helpers import zips
from tests.helpers.forged_pickles import Ref, forged, v2, v3
from tests.helpers.running import ROOT, run
from tests.helpers.zips import Entry
from tests.pickles.decode.test_cost import doublings

W = torch.arange(6.0).view(2, 3)
RAW = W.numpy().tobytes()
HONEST = zips.saved({"w": W, "n": torch.arange(40)})
RECORDS = zips.entries_of(HONEST)
FIRST = "archive/data/0"


def but(**changes: Any) -> bytes:
    """The honest file, but for the record of `w`."""
    return zips.build((RECORDS | {FIRST: RECORDS[FIRST].but(**changes)}).values())


def added(name: str, data: bytes = bytes(24), **changes: Any) -> bytes:
    """The honest file and one record more."""
    return zips.build([*RECORDS.values(), Entry(name, data, **changes)])


def deflated() -> bytes:
    return but(data=zips.deflated(RECORDS[FIRST]).data, method=8)


def unchecked() -> bytes:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        return zips.saved({"w": W})
    finally:
        torch.serialization.set_crc32_options(before)


def value(opcodes: bytes) -> bytes:
    """`w`, and beside it what the opcodes leave on the stack."""
    data = zips.saved({"w": W, "x": 77})
    pickled = zips.entries_of(data)["archive/data.pkl"].data
    assert pickled.count(b"K\x4d") == 1
    return zips.changed(data, **{"data.pkl": pickled.replace(b"K\x4d", opcodes)})


def tensor(*args: Any, **more: Any) -> bytes:
    """A tensor `w` that is told of like this; its storage is whole."""
    return forged({"w": v2(*args, **more)}, {"0": RAW})


class Payload:
    """Unpickled, it makes a folder in the working directory."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def nested() -> bytes:
    inner = zips.saved(Payload())
    data = b"B" + struct.pack("<I", len(inner)) + inner
    return value(b"ctorch.storage\n_load_from_bytes\n" + data + b"\x85R")


def looped() -> bytes:
    state: dict[str, Any] = {"w": W}
    state["self"] = state
    return zips.saved(state)


def two_types() -> bytes:
    other = v2(Ref(torch.IntStorage), size=(1,), stride=(1,))
    return forged({"w": v2(), "x": other}, {"0": RAW})


class Sample(NamedTuple):
    """A file of a class: what it is, and its bytes."""

    number: int
    what: str
    make: Callable[[], bytes]
    tried: bool = True  # also with weights_only=False


SAMPLES = [
    Sample(1, "two records of one name", lambda: added(FIRST)),
    Sample(2, "names that differ in case", lambda: added("archive/DATA/0")),
    Sample(3, "a second root folder", lambda: added("other/data.pkl", b"N.")),
    Sample(4, "another name in a local header", lambda: but(local_name="archive/data/9")),
    Sample(5, "encrypted, by a local header", lambda: but(local_flags=1)),
    Sample(6, "a wrong CRC-32", lambda: but(data=bytes(24), crc=1)),
    Sample(6, "no CRC-32 at all", unchecked),
    Sample(7, "a deflated storage", deflated),
    Sample(8, "records that share data", lambda: added("archive/data/2", b"", offset=0)),
    Sample(9, "a record outside of the file", lambda: but(offset=1 << 20)),
    Sample(10, "bytes before the archive", lambda: b"#!/bin/sh\n" + HONEST),
    Sample(10, "bytes after the archive", lambda: HONEST + b"what is this?"),
    Sample(
        11,
        "a contradictory zip64 record",
        lambda: zips.build(RECORDS.values(), zip64=True, end={"w_count": 1}),
    ),
    Sample(12, "a name outside of the folder", lambda: added("archive/../../x")),
    Sample(12, "a symbolic link", lambda: added("archive/x", external=0o120777 << 16)),
    Sample(13, "a zip without a checkpoint", lambda: zips.build([Entry("a/readme", b"w")])),
    Sample(14, "a record that nothing references", lambda: added("archive/data/2")),
    Sample(15, "a 7z archive named .bin", lambda: b"7z\xbc\xaf\x27\x1c" + bytes(99)),
    Sample(16, "a call of `os.mkdir`", lambda: zips.saved({"w": W, "x": Payload()})),
    Sample(17, "an object of a class", lambda: zips.saved({"w": W, "x": Fraction(1, 2)})),
    Sample(18, "an extension code", lambda: value(b"\x82\1")),
    Sample(18, "a persistent id of text", lambda: value(b"Px\n")),
    Sample(19, "a call in a nested pickle", nested),
    Sample(20, "a memo index of 2^31", lambda: value(b"Nr\xff\xff\xff\x7f"), tried=False),
    Sample(20, "tuples, 1,000 deep", lambda: value(b"N" + b"\x85" * 1000)),
    Sample(20, "lists that double 90 times", lambda: value(doublings(90)[:-1])),
    Sample(21, "an item set on a tensor", lambda: tensor(items=[(0, 9.0)])),
    Sample(22, "a dict that contains itself", looped),
    Sample(23, "`a.b`, and `b` in `a`", lambda: zips.saved({"w": W, "a.b": W, "a": {"b": W}})),
    Sample(24, "a negative size", lambda: tensor(size=(-2, 3))),
    Sample(25, "a view past its storage", lambda: tensor(size=(2, 4), stride=(4, 1))),
    Sample(25, "a truncated storage", lambda: forged({"w": v2()}, {"0": RAW[:20]})),
    Sample(26, "24 bytes as 4 TiB, stride 0", lambda: tensor(size=(1 << 40,), stride=(0,))),
    Sample(27, "2 sizes and 1 stride", lambda: tensor(stride=(1,))),
    Sample(28, "a storage of two types", two_types),
    Sample(
        29,
        "6 bytes for 6 float32",
        lambda: forged(
            {"w": v3(Ref(torch.UntypedStorage, numel=6), (2, 3), (3, 1), torch.float32)},
            {"0": RAW[:6]},
        ),
    ),
    Sample(30, "conjugate real numbers", lambda: tensor(None, 0, (2, 3), (3, 1), {"conj": True})),
    Sample(31, "an invalid byte order", lambda: zips.changed(HONEST, byteorder=b"junk")),
    Sample(34, "a name with escape sequences", lambda: zips.saved({"w": W, "\x1b[2J": W})),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda each: f"{each.number}-{each.what}")
def test_what_torch_makes_of_a_file_of_the_class(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.bin"
    path.write_bytes(sample.make())
    row = [str(sample.number), sample.what, here(path), theirs(path), theirs(path, mmap=True)]
    row.append(theirs(path, weights_only=False) if sample.tried else "not tried")
    table = (ROOT / "docs" / "explanation" / "security.md").read_text()
    assert "| " + " | ".join(row) + " |" in table.split("\n")


def test_the_table_has_no_other_rows() -> None:
    table = (ROOT / "docs" / "explanation" / "security.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", table, re.MULTILINE)
    assert rows == [(str(sample.number), sample.what) for sample in SAMPLES]


CUT = """
import os, sys, torch
w = torch.load(sys.argv[1], mmap=True)["w"]
os.truncate(sys.argv[1], 4096)
print(w.sum())
"""


def test_32_torch_that_maps_a_file_dies_when_it_is_cut(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "x.pt")
    done = subprocess.run([sys.executable, "-c", CUT, tmp_path / "x.pt"], check=False)
    assert done.returncode == -signal.SIGBUS


def test_33_torch_writes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "x.pt").symlink_to("precious")
    torch.save({"w": W}, tmp_path / "x.pt")
    assert (tmp_path / "precious").read_bytes()[:2] == b"PK"


def here(path: Path) -> str:
    done = run("convert", path, "-o", "out.npz")
    if done.code:
        assert done.code in (2, 3), done.err
        return "rejected"
    ids = [each["id"] for each in run("inspect", "--json", path).json["findings"]]
    with np.load("out.npz") as found:
        assert found["w"].tobytes() == RAW
    return ", ".join(["read", *ids])


def theirs(path: Path, **options: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            w = torch.load(path, **options)["w"]
        except Exception:  # noqa: BLE001  whatever it is
            return "rejected"
    if os.path.exists("ran"):
        os.rmdir("ran")
        return "**runs**"
    if w.shape != W.shape:
        return "made"
    return "read" if torch.equal(w, W) else "**other values**"

"""Zips behind or inside other files, which some reader opens as zips."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cgpt_convert.scanning.result import Verdict
from tests.helpers import zips
from tests.helpers.scan_files import BAD, WEIGHTS, member, npy, scanned, tarred, zipped
from tests.helpers.torch_save import saved, saved_legacy

HIDDEN = zipped({"data.pkl": BAD})


def wide(data: bytes) -> bytes:
    """The zip with a zip64 end record, and the classic one filled with ones."""
    at = data.rfind(b"PK\5\6")
    count, nbytes, offset = struct.unpack_from("<HLL", data, at + 10)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, nbytes, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    ones = b"\xff" * 2
    return data[:at] + end64 + locator + data[at : at + 8] + ones * 2 + ones * 4 + b"\0\0"


def safetensors(tail: bytes) -> bytes:
    tensor = {"dtype": "U8", "shape": [len(tail)], "data_offsets": [0, len(tail)]}
    header = json.dumps({"x": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + tail


def gguf(tail: bytes) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, 0) + bytes(8) + tail


FRONTS = {
    "other bytes": lambda data: bytes(range(1, 90)) + data,
    "text": lambda data: b"some text\n" + data,
    "a valid safetensors file": safetensors,
    "GGUF": gguf,
    "a pickle": lambda data: pickle.dumps(1) + data,
    "an array": lambda data: npy(np.frombuffer(data, np.uint8)),
    "a tar": lambda data: tarred({"a": b"x"}) + data,
    "a legacy stream": lambda data: saved_legacy(1) + data,
}
ENDS = {
    "plain": HIDDEN,
    "zip64": wide(HIDDEN),
    "a comment": HIDDEN[:-2] + b"\x05\0hello",
    "bytes behind": HIDDEN + bytes(300),
    "a long comment": HIDDEN[:-2] + b"\xff\xff" + bytes(65535),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("front", FRONTS)
def test_a_zip_behind_another_file_is_malformed(front: str, end: str, tmp_path: Path) -> None:
    data = FRONTS[front](ENDS[end])
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == ["data.pkl"]  # a reader opens it
    for suffix in ("", ".safetensors", ".zip"):
        found = scanned(data, tmp_path, name=f"x{suffix}")
        assert found.verdict in (Verdict.MALFORMED, Verdict.DANGEROUS), found
    inside = scanned(zipped({"x": data, "y" * 70: bytes(70_000)}), tmp_path)
    assert inside.verdict in (Verdict.MALFORMED, Verdict.DANGEROUS), inside


def test_a_zip_in_the_header_of_a_record_is_malformed(tmp_path: Path) -> None:
    for hidden in (HIDDEN, wide(HIDDEN)):
        extra = struct.pack("<2sH", b"FB", len(hidden)) + hidden
        data = zips.build([member().but(local_extra=extra)])
        assert scanned(data, tmp_path).verdict is Verdict.MALFORMED


def test_a_zip_that_is_a_member_of_a_tar_is_scanned(tmp_path: Path) -> None:
    good = tarred({"config.json": b"{}", "model.ckpt": saved(WEIGHTS)})
    assert scanned(good, tmp_path, name="model.nemo").verdict is Verdict.CLEAN
    bad = tarred({"config.json": b"{}", "model.ckpt": saved({"x": 1}) + HIDDEN})
    assert scanned(bad, tmp_path).verdict is not Verdict.CLEAN
    cut = tarred({"x.gguf": gguf(zipped({"x": BAD}))[:-9]})  # the padding of the tar completes it
    assert zipfile.ZipFile(io.BytesIO(cut)).namelist() == ["x"]
    assert scanned(cut, tmp_path).verdict is Verdict.MALFORMED


def test_archives_back_to_back_are_scanned_one_by_one(tmp_path: Path) -> None:
    """As torch.distributed.checkpoint writes a `.distcp` file."""
    first, second = saved(np.arange(3)), saved(WEIGHTS)
    found = scanned(first + second + first, tmp_path, name="__0_0.distcp")
    assert (found.verdict, found.pickles) == (Verdict.CLEAN, 3), found.problems
    bad = saved(np.arange(3)) + zips.build([member(data=BAD)]) + second
    assert scanned(bad, tmp_path).verdict is Verdict.DANGEROUS
    assert scanned(first + b"?" + second, tmp_path).verdict is Verdict.MALFORMED


@pytest.mark.parametrize("end", ["plain", "zip64"])
def test_a_zip_behind_the_numbers_of_a_storage(tmp_path: Path, end: str) -> None:
    """Taken out of the archive, pandas and numpy open the storage as the zip that ends it."""
    inside = b"1234" * 25 + ENDS[end]
    array = np.frombuffer(inside + bytes(-len(inside) % 4), np.uint8)
    assert scanned(saved({"w": array}), tmp_path).verdict is Verdict.MALFORMED
    harmless = np.frombuffer(b"1234" * 25 + b"PK\5\6" + bytes(40), np.uint8)
    assert scanned(saved({"w": harmless}), tmp_path).verdict is Verdict.CLEAN

"""Files that hold no pickle raise no alarm."""

from __future__ import annotations

import gzip
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cgpt_convert.core import limits
from cgpt_convert.scanning import scan_budget, scanner
from cgpt_convert.scanning.result import Verdict
from tests.helpers.running import run
from tests.helpers.scan_files import BAD, npy, scanned, tarred, zipped
from tests.helpers.torch_save import saved


def test_random_bytes_are_no_pickles(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 3, 100, 5000):
        for _ in range(100):
            found = scanned(rng.bytes(size), tmp_path)
            assert not found.sightings, found


def test_storages_of_random_bytes_raise_no_alarm(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    beginnings = [
        b"\x80\2",
        b"\x80\4\x95",
        b"\x1f\x8b\x08",
        b"\x78\x9c",
        b"(",
        b"c",
        b"\x82\1.",
        b"BZh9",
    ]
    tensors = {
        f"t{i}": np.frombuffer(b + rng.bytes(400), np.uint8) for i, b in enumerate(beginnings * 40)
    }
    found = scanned(saved(tensors), tmp_path)
    assert (found.verdict, found.pickles) == (Verdict.CLEAN, 1), found


@pytest.mark.slow  # seconds each
@pytest.mark.parametrize(
    "data",
    [
        b"".join(pickle.dumps({"step": step, "loss": step / 3}) for step in range(5000)),
        gzip.compress(b"".join(pickle.dumps({"step": step}) for step in range(5000))),
        b"".join(pickle.dumps(step / 3) for step in range(60_000)),
        gzip.compress(saved([np.array(n / 7, np.float32) for n in range(10_000)])),
        pickle.dumps([gzip.compress(b"%d" % n * 9 + bytes(range(100))) for n in range(3000)]),
        zipped({f"{n}.txt": b"some text" for n in range(5000)}, zipfile.ZIP_DEFLATED),
        tarred({f"{n}.txt": b"some text" for n in range(2000)}),
        saved({f"t{n}": np.array(n, np.float32) for n in range(5000)}),
    ],
    ids=[
        "records",
        "records in a gzip",
        "numbers",
        "tensors in a gzip",
        "gzips",
        "zip",
        "tar",
        "tensors",
    ],
)
def test_nor_do_many_small_parts(data: bytes, tmp_path: Path) -> None:
    assert not scanned(data, tmp_path).problems


@pytest.mark.parametrize("byte", b"()0N]}2")
def test_storages_of_one_number_that_is_an_opcode_raise_no_alarm(byte: int, tmp_path: Path) -> None:
    found = scanned(saved({"x": np.full(600_000, byte, np.uint8)}), tmp_path)
    assert (found.verdict, found.pickles) == (Verdict.CLEAN, 1), found


@pytest.mark.parametrize("byte", b"()N]}")
def test_nor_do_longer_ones_than_a_pickle_may_be(
    byte: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (scan_budget, scanner):
        monkeypatch.setattr(module, "PICKLE", limits.PICKLE._replace(opcodes=1000))
    found = scanned(saved({"x": np.full(5000, byte, np.uint8)}), tmp_path)
    assert (found.verdict, found.pickles) == (Verdict.CLEAN, 1), found
    found = scanned(bytes((byte,)) * 5000, tmp_path)  # of a file by itself nobody knows
    assert found.verdict is Verdict.NOT_SCANNED


TEXTS = (
    b"# A model\n\nIt is a model.\n",
    b"cerebras\nis a company\n",
    b"cast\nfrom one type\nto another.\n",
    b"(c) 2026 Somebody\n.\n",
    b"import os\nos.system('ls')\n",
    b'{"model_type": "gpt2"}\n',
    b"Version 1\n.\n",
    b"<html><body>Not found</body></html>",
    b"x\x9c is not zlib",
    b"",
    b"\0" * 5000,
)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_other_files_are_passed_over_and_counted(text: bytes, tmp_path: Path) -> None:
    assert scanned(text, tmp_path).verdict is Verdict.NOTHING
    result = run("scan", tmp_path)
    assert result.code == 0
    assert "1 file contains no weights and no pickle" in result.out
    assert result.out.splitlines()[-1] == "1 file, without weights"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("html.bin", b"<html><body>Not found</body></html>", "web page"),
        ("zero.PT", bytes(5000), "file of zeros"),
        ("x.safetensors", b"", "empty file"),
        ("x.gguf", b"<?xml version='1.0'?><Error/>", "XML document"),
    ],
)
def test_what_is_called_like_weights_and_holds_none_is_named(
    name: str, data: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "README.md").write_bytes(data)
    result = run("scan", tmp_path)
    assert result.code == 0
    assert f"not weights  {tmp_path / name} ({words})\n" in result.out
    assert "README.md" not in result.out
    assert "2 files contain no weights" in result.out


def test_this_project_is_weights_only() -> None:
    top = Path(__file__).parents[2]
    for folder in ("cgpt_convert", "mappings", "docs", "tests"):
        assert run("scan", top / folder).code == 0


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_every_protocol_are_clean(protocol: int, tmp_path: Path) -> None:
    # those of protocol 0 are texts
    accepted = (Verdict.CLEAN,) if protocol else (Verdict.CLEAN, Verdict.NOTHING)
    for value in ({}, "", 1.5, [10**400], [1, "a", (None, True)], {"a": {"b": b"c"}}):
        data = pickle.dumps(value, protocol)
        found = scanned(data, tmp_path, name="m.pkl")
        assert found.verdict in accepted, (value, found)
        for packed in (zipped({"d/1.pkl": data}), tarred({"d/1.pkl": data}), gzip.compress(data)):
            assert scanned(packed, tmp_path, name="m").verdict in accepted, (value, protocol)


def test_arrays_of_strings_and_times_are_numbers_to_numpy(tmp_path: Path) -> None:
    values: tuple[list[bytes] | list[str], ...] = ([b"csc", b"cos"], ["csc\n", "i"], ["2026-01-01"])
    for value, kind in zip(values, ("S4", "U4", "M8[D]"), strict=True):
        for array in (np.array(value, kind), np.array(value[0], kind)):
            found = scanned(npy(array), tmp_path, name="x.npy")
            assert found.verdict is Verdict.CLEAN, (kind, found)
    forged = npy(np.array(b"x" * 40, "S40")).replace(b"'|S40'", b"'|\\x4f'")
    found = scanned(forged[:128] + BAD, tmp_path)
    assert found.verdict is Verdict.DANGEROUS


def test_a_schema_that_describes_pipelines_names_none(tmp_path: Path) -> None:
    schema = b'{"custom_pipeline": {"additionalProperties": [{"$ref": "#/definitions/items"}]}}'
    assert scanned(schema, tmp_path).verdict is Verdict.NOTHING

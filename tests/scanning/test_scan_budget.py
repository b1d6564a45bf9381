"""What scanning a file may cost."""

from __future__ import annotations

import copy
import functools
import gzip
import os
import pickle
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cgpt_convert.scanning.allowlist import Allowlist
from cgpt_convert.scanning.result import Verdict
from cgpt_convert.scanning.scan_files import scan_file
from cgpt_convert.sources.local import LocalFile
from tests.helpers.running import environ
from tests.helpers.scan_files import BAD, scanned, zipped
from tests.helpers.torch_save import saved


def test_large_arguments_are_passed_over_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.pkl"
    with path.open("wb") as file:
        file.write(b"\x80\5\x96" + struct.pack("<Q", 3 << 30))
        file.seek(3 << 30, os.SEEK_CUR)
        file.write(b"0" + BAD[2:])
    script = (
        "import sys\nfrom cgpt_convert.scanning.scan_files import scan_file\n"
        "from cgpt_convert.scanning.allowlist import Allowlist\n"
        "print(scan_file(sys.argv[1], Allowlist()).verdict.value)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    line = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(line, capture_output=True, check=True, env=environ(), text=True)
    verdict, peak_kib = done.stdout.split()
    assert verdict == "dangerous"
    assert int(peak_kib) < 60_000


BOMBS = {
    "many values": b"\x80\4" + b"]" * 500_000 + b".",
    "many marks": b"\x80\4" + b"(" * 500_000 + b".",
    "many memo entries": b"\x80\4N" + b"\x94" * 500_000 + b".",
    "doubling": b"\x80\4]" + b"2\x86" * 100_000 + b".",
    "many names": b"".join(b"cteam\nC%d\n" % i for i in range(20_000)) + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_soon_and_small(name: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = scanned(BOMBS[name], tmp_path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 20
    assert after.ru_maxrss - before.ru_maxrss < 300_000
    assert found.verdict is not Verdict.DANGEROUS
    if name == "many names":
        assert found.problems


def test_a_packed_vocabulary_is_no_bomb(tmp_path: Path) -> None:
    merges = [f"{number:x} ing" for number in range(100_000)]
    found = scanned(gzip.compress(pickle.dumps(merges, 4)), tmp_path)
    assert found.verdict is Verdict.CLEAN


@pytest.mark.slow  # seconds each
@pytest.mark.parametrize("value", [[1], (True, False), {"a": 1}, []])
def test_a_plain_pickle_of_many_values_is_no_bomb(value: object, tmp_path: Path) -> None:
    found = scanned(pickle.dumps([copy.copy(value) for _ in range(400_000)], 4), tmp_path)
    assert found.verdict is Verdict.CLEAN


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    inner = gzip.compress(bytes(64 << 20))
    data = gzip.compress(inner * 20)
    found = scanned(data, tmp_path)
    assert not found.sightings
    assert found.verdict in (Verdict.NOT_SCANNED, Verdict.NOTHING)


@pytest.mark.parametrize(
    ("small", "pack"),
    [
        (pickle.dumps(None), bytes),
        (b"N.", functools.partial(gzip.compress, mtime=0)),
    ],
    ids=["pickles", "gzips"],
)
def test_too_many_parts_are_one_problem(
    small: bytes, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    def told(count: int) -> list[str]:
        parts = [pack(small + struct.pack("<H", number)) for number in range(count)]
        data = zipped({"first": BAD, "parts": pickle.dumps(parts, 4)})
        found = scanned(data, tmp_path)
        assert found.verdict is Verdict.DANGEROUS  # by what came before
        return [str(problem) for problem in found.problems]

    assert not [line for line in told(1000) if "take longer" in line]
    assert len([line for line in told(9000) if "take longer" in line]) == 1


def test_what_torch_loads_is_looked_at_first(tmp_path: Path) -> None:
    flood = pickle.dumps([gzip.compress(b"N.%d" % number) for number in range(9000)], 4)
    found = scanned(zipped({"archive/a": flood, "archive/data.pkl": BAD}), tmp_path)
    assert found.verdict is Verdict.DANGEROUS
    assert any("take longer" in str(problem) for problem in found.problems)


def test_a_tensor_of_zeros_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zeros.pt").write_bytes(saved({"w": np.zeros(4 << 20, np.float32)}))
    read: list[int] = []
    plain = LocalFile.readinto

    def counted(self: LocalFile, offset: int, buffer: memoryview) -> None:
        read.append(len(buffer))
        plain(self, offset, buffer)

    monkeypatch.setattr(LocalFile, "readinto", counted)
    assert scan_file(str(tmp_path / "zeros.pt"), Allowlist()).verdict is Verdict.CLEAN
    assert sum(read) < 1 << 20

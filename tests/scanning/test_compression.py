"""Compressed files: whatever some loader opens is opened, or it is not scanned."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from cgpt_convert.scanning.result import Verdict
from tests.helpers.scan_files import scanned, zipped

RAN = b"cbuiltins\nprint\n(S'ran'\ntR."
CLEAN = pickle.dumps({"a": 1}, 2)


def flagged(flags: int, fields: bytes = b"") -> Callable[[bytes], bytes]:
    """Return a packer of gzip whose header has these flags and fields."""

    def pack(data: bytes) -> bytes:
        plain = gzip.compress(data)
        return plain[:3] + bytes((flags,)) + plain[4:10] + fields + plain[10:]

    return pack


def alone(**options: int) -> Callable[[bytes], bytes]:
    chain = [{"id": lzma.FILTER_LZMA1, **options}]
    return lambda data: lzma.compress(data, lzma.FORMAT_ALONE, filters=chain)


def windowed(bits: int) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        packer = zlib.compressobj(wbits=bits)
        return packer.compress(data) + packer.flush()

    return pack


def zfile(data: bytes) -> bytes:
    """joblib 0.9's: joblib/numpy_pickle_compat.py write_zfile."""
    return b"ZF" + hex(len(data)).encode().ljust(19) + zlib.compress(data)


def open_gzip(path: Path) -> None:
    with gzip.open(path) as file:
        pickle.load(file)
        pickle.load(file)


def open_lzma(path: Path) -> None:
    with lzma.open(path) as file:
        pickle.load(file)
        pickle.load(file)


def open_zlib(path: Path) -> None:
    data = zlib.decompress(path.read_bytes())
    pickle.loads(data[len(CLEAN) :])


def open_joblib(path: Path) -> None:
    pytest.importorskip("joblib").load(path)


PACKED: dict[str, tuple[Callable[[bytes], bytes], Callable[[Path], None]]] = {
    "gzip": (gzip.compress, open_gzip),
    "gzip, reserved flags": (flagged(0xE0), open_gzip),
    "gzip, a wrong header checksum": (flagged(2, b"xx"), open_gzip),
    "gzip, a name and a comment": (flagged(24, b"name\0comment\0"), open_gzip),
    "gzip, an extra field": (flagged(4, b"\3\0abc"), open_gzip),
    "gzip, padding between members": (
        lambda data: gzip.compress(data[:3]) + bytes(40_000) + gzip.compress(data[3:]),
        open_gzip,
    ),
    "gzip, a wrong trailer": (lambda data: gzip.compress(data)[:-8] + bytes(8), open_gzip),
    "bzip2": (bz2.compress, open_joblib),
    "xz": (lzma.compress, open_lzma),
    "xz, two streams": (
        lambda data: lzma.compress(data[:3]) + lzma.compress(data[3:]),
        open_lzma,
    ),
    "lzma": (alone(), open_lzma),
    "lzma, a small dictionary": (alone(dict_size=4096), open_lzma),
    "lzma, other properties": (alone(lc=0, lp=2, pb=1, dict_size=1 << 20), open_lzma),
    "zlib": (zlib.compress, open_zlib),
    "zlib, stored": (lambda data: zlib.compress(data, 0), open_zlib),
    "zlib, a small window": (windowed(9), open_zlib),
    "joblib's ZF": (zfile, open_joblib),
}


LOADED = [
    pytest.param(name, marks=pytest.mark.slow if load is open_joblib else ())
    for name, (_, load) in PACKED.items()
]


@pytest.mark.parametrize("name", LOADED)
def test_what_a_loader_opens_is_opened(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pack, load = PACKED[name]
    first = b"" if load is open_joblib else CLEAN
    path = tmp_path / "file"
    path.write_bytes(pack(first + RAN))
    with pytest.warns() if "ZF" in name else pytest.MonkeyPatch.context():
        load(path)
    assert capfd.readouterr().out == "ran\n"
    for data in (pack(first + RAN), zipped({"inner": pack(first + RAN)})):
        found = scanned(data, tmp_path)
        assert found.verdict is Verdict.DANGEROUS, found
    if "wrong trailer" not in name:
        assert scanned(pack(CLEAN), tmp_path).verdict is Verdict.CLEAN


CUT = [name for name in PACKED if "padding" not in name and "streams" not in name]


@pytest.mark.parametrize("name", CUT)
def test_damage_hides_nothing_that_comes_before_it(name: str, tmp_path: Path) -> None:
    pack, _ = PACKED[name]
    whole = pack(RAN + bytes(range(256)) * 40)
    damaged = bytearray(whole[: len(whole) - 40])
    damaged[-60:] = bytes(60)
    found = scanned(bytes(damaged), tmp_path, name="x.pkl")
    assert found.verdict in (Verdict.DANGEROUS, Verdict.MALFORMED, Verdict.NOT_SCANNED), found


@pytest.mark.parametrize(
    "data",
    [
        b"\x04\x22\x4d\x18" + bytes(60),  # lz4
        b"\x02\x21\x4c\x18" + bytes(60),  # lz4 as older programs wrote it
        b"\x28\xb5\x2f\xfd" + bytes(60),  # zstd
        b"\x53\x2a\x4d\x18" + bytes(60),  # a skippable frame of either
        b"\x1f\x9d\x90" + bytes(60),  # compress
        lzma.compress(CLEAN, lzma.FORMAT_ALONE).replace(b"\x5d\0\0\x80\0", b"\x5d\0\0\0\xff"),
    ],
)
def test_what_cannot_be_unpacked_here_is_not_scanned(data: bytes, tmp_path: Path) -> None:
    assert scanned(data, tmp_path).verdict is Verdict.NOT_SCANNED


def test_other_files_that_begin_alike_raise_no_alarm(tmp_path: Path) -> None:
    # a tokenizer of SentencePiece, which begins as .lzma could, and a note that begins as zlib
    pieces = b"".join(
        b"\n" + bytes((len(text) + 7, 10, len(text))) + text + b"\x15" + struct.pack("<f", 0)
        for text in (b"<unk>", b"<s>", b"</s>", b"the")
    )
    for data in (
        pieces,
        b"x^2 + 1",
        b"(S\n",
        b"8O",
        b"ZFc",
        b"ZF",
        b"x\x9c\x8br3\xa8",
        b"HTTP",
        b"\x18\x19 bytes",
    ):
        assert scanned(data, tmp_path).verdict is Verdict.NOTHING


@pytest.mark.parametrize("cut", [b"ctorch.uti", b"ctorch\n", b"ctorch.utils\nx"])
@pytest.mark.parametrize("pack", [zfile, zlib.compress], ids=["ZF", "zlib"])
def test_a_name_that_is_cut_off_is_an_import_to_joblib(
    pack: Callable[[bytes], bytes], cut: bytes, tmp_path: Path
) -> None:
    """Python's unpickler takes the end of the data for the end of the line."""
    assert scanned(pack(cut), tmp_path).verdict is Verdict.MALFORMED
    assert scanned(pack(b"corpus of\nwords\n"), tmp_path).verdict is Verdict.NOTHING


@pytest.mark.slow  # joblib
def test_joblib_imports_a_module_whose_name_ends_the_file(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    (tmp_path / "torch.py").write_text("print('ran')")
    file = tmp_path / "model"
    file.write_bytes(zfile(b"ctorch\nx"))
    program = "import joblib, sys; joblib.load(sys.argv[1])"
    made = subprocess.run(
        [sys.executable, "-c", program, file],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.stdout == "ran\n"
    assert scanned(file.read_bytes(), tmp_path).verdict is not Verdict.NOTHING

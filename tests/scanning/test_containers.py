"""Pickles in whatever they lie in, and files that cannot be judged."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgpt_convert.scanning.allowlist import Allowlist
from cgpt_convert.scanning.result import Verdict
from cgpt_convert.scanning.scan_files import scan_file
from tests.helpers import zips
from tests.helpers.hostile_pickles import Payload, payload
from tests.helpers.running import run
from tests.helpers.scan_files import BAD, WEIGHTS, member, npy, said, scanned, tarred, zipped
from tests.helpers.torch_save import saved, saved_legacy

CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "zip": lambda bad: zipped({"a.txt": b"x", "data.pkl": bad}),
    "zip, deflated": lambda bad: zipped({"m": bad}, zipfile.ZIP_DEFLATED),
    "zip, under the name of a storage": lambda bad: zipped(
        {"archive/data.pkl": pickle.dumps({}, 2), "archive/data/0": bad}
    ),
    "zip, in a folder of code": lambda bad: zipped({"a/data.pkl": b"\x80\2N.", "a/code/x.py": bad}),
    "zip in a zip": lambda bad: zipped({"inner.png": zipped({"x": bad})}),
    "zip in a zip, both deflated": lambda bad: zipped(
        {"inner": zipped({"x": bad}, zipfile.ZIP_DEFLATED)}, zipfile.ZIP_DEFLATED
    ),
    "tar": lambda bad: tarred({"weights/m.bin": bad}),
    "tar, long names": lambda bad: tarred(
        {"d" * 90 + "/" + "n" * 90: bad}, form=tarfile.GNU_FORMAT
    ),
    "tar, pax names": lambda bad: tarred({"ä" * 90: bad}),
    "tar in a gzip": lambda bad: tarred({"m": bad}, "w:gz"),
    "zip in a tar in an xz": lambda bad: tarred({"m": zipped({"x": bad})}, "w:xz"),
    "gzip": gzip.compress,
    "gzip, second member": lambda bad: gzip.compress(b"\x80\2N.") + gzip.compress(bad),
    "gzip with a wrong checksum": lambda bad: gzip.compress(bad)[:-8] + bytes(8),
    "gzip, cut off": lambda bad: gzip.compress(bad)[:-9],
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda bad: lzma.compress(bad, lzma.FORMAT_ALONE),
    "zlib": zlib.compress,
    "npy": lambda bad: npy(np.zeros(1)).replace(b"'<f8'", b"'|O' ")[:128] + bad,
    "npy, the type in an escape": lambda bad: (
        npy(np.zeros(1)).replace(b"'<f8', ", b"'\\x4f8',")[:128] + bad
    ),
    "npz": lambda bad: zipped({"a.npy": npy(np.zeros(1)).replace(b"'<f8'", b"'|O' ")[:128] + bad}),
    "a tar's first header": lambda bad: _checksummed(bad + bytes(512 - len(bad))) + bytes(1024),
    "a checksum of zeros": lambda bad: zips.build(
        [zips.Entry("archive/data.pkl", bad), zips.Entry("archive/x", b"y", crc=7)]
    ),
}


def _checksummed(block: bytes) -> bytes:
    """The block as a tar header with a right checksum."""
    plain = block[:124] + b"00000000000\0" + bytes(12) + b" " * 8 + b"0" + block[157:]
    digits = f"{sum(plain):06o}\0 ".encode()
    return plain[:148] + digits + plain[156:]


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_pickle_is_found_in_whatever_it_lies(name: str, tmp_path: Path) -> None:
    found = scanned(CONTAINERS[name](BAD if "tar's" not in name else payload(0)), tmp_path)
    assert found.verdict is Verdict.DANGEROUS, (found.sightings, found.problems)
    assert "system('echo hostile')" in said(found)


def _xz_that_asks_for_4_gib() -> bytes:
    """Return an .xz of a pickle whose block header gives the largest dictionary there is."""
    packed = bytearray(lzma.compress(BAD, preset=0))
    start = 12  # of the block header, after the stream header
    size = 4 * (packed[start] + 1)
    (at,) = (i for i in range(start, start + size) if packed[i : i + 2] == b"\x21\x01")
    packed[at + 2] = 40
    header = packed[start : start + size - 4]
    packed[start + size - 4 : start + size] = zlib.crc32(header).to_bytes(4, "little")
    return bytes(packed)


def _lzma_that_asks_for_2_gib() -> bytes:
    packed = lzma.compress(BAD, lzma.FORMAT_ALONE)
    return packed[:1] + (1 << 31).to_bytes(4, "little") + packed[5:]


@pytest.mark.parametrize("make", [_xz_that_asks_for_4_gib, _lzma_that_asks_for_2_gib])
def test_a_dictionary_that_does_not_fit_in_memory_is_not_allocated(
    make: Callable[[], bytes], tmp_path: Path
) -> None:
    assert lzma.decompress(make()) == BAD  # the file is right: it only asks for too much
    path = tmp_path / "x.bin"
    path.write_bytes(make())
    limit = f"ulimit -v {2 << 20}"  # KiB; NumPy and torch's threads are not loaded by a scan
    words = [sys.executable, "-m", "cgpt_convert", "scan", str(path)]
    done = subprocess.run(
        ["sh", "-c", f'{limit}; exec "$@"', "sh", *words],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "decompressing the file requires more than 136 MiB of memory" in done.stdout
    assert "Traceback" not in done.stderr


def test_xz_of_the_strongest_preset_is_looked_into(tmp_path: Path) -> None:
    assert scanned(lzma.compress(BAD, preset=9), tmp_path).verdict is Verdict.DANGEROUS


@pytest.mark.parametrize("suffix", ["png", "txt", "safetensors", "gguf", "json", "7z", "py", ""])
def test_no_suffix_hides_it(suffix: str, tmp_path: Path) -> None:
    for data in (BAD, payload(0), zipped({"data.pkl": BAD})):
        assert scanned(data, tmp_path, name=f"x.{suffix}").verdict is Verdict.DANGEROUS


@pytest.mark.parametrize("save", [saved, saved_legacy])
def test_torchs_files(save: Callable[[Any], bytes], tmp_path: Path) -> None:
    good, bad = save(WEIGHTS), save({**WEIGHTS, "x": Payload()})
    assert scanned(good, tmp_path).verdict is Verdict.CLEAN
    found = scanned(bad, tmp_path)
    assert (found.verdict, found.kind.startswith("PyTorch")) == (Verdict.DANGEROUS, True)


@pytest.mark.slow  # torch
@pytest.mark.parametrize("protocol", range(6))
def test_torchs_files_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    import torch

    weights = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    for new in (True, False):
        options = {"_use_new_zipfile_serialization": new, "pickle_protocol": protocol}
        assert scanned(zips.saved(weights, **options), tmp_path).verdict is Verdict.CLEAN
        assert scanned(zips.saved(Payload(), **options), tmp_path).verdict is Verdict.DANGEROUS


@pytest.mark.slow  # torch
def test_a_pickled_tensor_is_foreign_and_the_file_in_it_is_looked_into(tmp_path: Path) -> None:
    import torch

    found = scanned(pickle.dumps(torch.zeros(3)), tmp_path)
    assert found.verdict is Verdict.FOREIGN
    assert (found.pickles, "torch.storage._load_from_bytes" in said(found)) == (6, True)


COUNTS = (b"I0x2\n.", b"L0x2L\n.", b"\x80\2\x8a\xc8\2" + bytes(199) + b".")


@pytest.mark.slow  # torch
@pytest.mark.parametrize("number", COUNTS)
def test_torch_takes_counts_that_are_no_plain_numbers(
    number: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    storage = b"\x80\2X\1\0\0\0aX\3\0\0\0cpuctorch\nFloatStorage\n\x87." + struct.pack("<qf", 1, 1)
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1000, "little_endian": True, "type_sizes": sizes}
    parts = {"sys_info": pickle.dumps(system, 2), "pickle": pickle.dumps({}, 2)}
    hidden = number + storage + b"\x80\2cbuiltins\nprint\nX\3\0\0\0ran\x85R."
    data = tarred({**parts, "tensors": pickle.dumps(0, 2), "storages": hidden})
    (tmp_path / "old.pt").write_bytes(data)
    with pytest.raises(TypeError):  # when it has run
        torch.load(tmp_path / "old.pt", weights_only=False)
    assert capfd.readouterr().out == "ran\n"
    assert scanned(data, tmp_path).verdict in (Verdict.MALFORMED, Verdict.DANGEROUS)


@pytest.mark.slow  # seconds
def test_in_torchs_old_tar_every_pickle_between_the_storages_is_looked_at(tmp_path: Path) -> None:
    key, cls = pickle.dumps(1, 2), b"ctorch\nFloatStorage\n"
    storage = b"\x80\2(K\1X\3\0\0\0cpu" + cls + b"t." + struct.pack("<q", 2) + bytes(8)
    bad = b"\x80\2(K\2" + BAD[2:-1] + b"t."
    parts = {"sys_info": pickle.dumps({}, 2), "pickle": pickle.dumps({}, 2)}
    good = {**parts, "tensors": pickle.dumps(0, 2), "storages": key + storage + pickle.dumps([], 2)}
    assert scanned(tarred(good), tmp_path).verdict is Verdict.CLEAN
    for hidden in (pickle.dumps(2, 2) + storage + bad, key + storage + BAD):
        found = scanned(tarred({**good, "storages": hidden}), tmp_path)
        assert found.verdict is Verdict.DANGEROUS
        assert "storages, byte" in said(found)
    for number in COUNTS:
        found = scanned(tarred({**good, "storages": number + storage + BAD}), tmp_path)
        assert found.verdict in (Verdict.DANGEROUS, Verdict.MALFORMED)
    for count in (100_000, 200_000, 300_000):  # opcodes before it, which are looked at twice
        late = b"\x80\2" + b"N0" * count + key[2:] + storage + BAD
        found = scanned(tarred({**good, "storages": late}), tmp_path)
        assert found.verdict in (Verdict.DANGEROUS, Verdict.NOT_SCANNED)


@pytest.mark.slow  # torch
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_weights_with_a_note(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    found = scan_file(str(path), Allowlist())
    assert found.verdict is Verdict.CLEAN
    assert [note.rule.id for note in found.notes] == ["CGPT018"]
    assert found.kind == run("inspect", path, "--json").json["kind"] == "TorchScript archive"


def test_object_arrays_of_plain_values_are_weights_only(tmp_path: Path) -> None:
    assert scanned(npy(np.array([1, "a"], dtype=object)), tmp_path).verdict is Verdict.CLEAN
    fields = np.zeros(2, dtype=[("a", "f4"), ("b", "i8")])
    assert scanned(npy(fields), tmp_path).verdict is Verdict.CLEAN


DISPUTED: dict[str, bytes] = {
    "two records of one name": zips.build([member(), member(data=BAD)]),
    "names that differ in case": zips.build([member(), member("archive/DATA.pkl", BAD)]),
    "a second root": zips.build([member(), member("b/data.pkl", BAD)]),
    "another local name": zips.build([member().but(local_name="archive/data.pk2")]),
    "another local flag": zips.build([member().but(local_flags=1)]),
    "the encryption bit": zips.build([member().but(flags=1)]),
    "the patch bit": zips.build([member().but(flags=0x20)]),
    "the masking bit": zips.build([member().but(flags=0x2000)]),
    "a wrong checksum": zips.build([member().but(crc=1), member("archive/x", b"y")]),
    "another method": zips.build([member().but(method=93, nbytes=4, crc=0)]),
    "a zip behind a pickle": b"\x80\2N." + zipped({"data.pkl": BAD}),
    "a zip behind a safetensors file": struct.pack("<Q", 2) + b"{}" + zipped({"x": BAD}),
    "a zip that is cut off": saved(WEIGHTS)[:-60],
    "a pickle that is cut off": pickle.dumps({"a": 1})[:9],
    "a tar with a second end": tarred({"a": b"x"})[:1024] + bytes(512) + tarred({"b": BAD}),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "a 7z archive": b"7z\xbc\xaf\x27\x1c" + bytes(60),
    "safetensors past its tensors": struct.pack("<Q", 2) + b"{}" + bytes(9),
    "GGUF that is cut off": b"GGUF" + struct.pack("<IQQ", 3, 5, 0),
    "a memo index for gigabytes": b"\x80\2Nr\xff\xff\xff\xff.",
}


CLOSED = {
    "the encryption bit",
    "the patch bit",
    "the masking bit",
    "another method",
    "a Git LFS pointer",
    "a 7z archive",
}


@pytest.mark.parametrize("name", DISPUTED)
def test_what_readers_dispute_is_malformed_and_says_why(name: str, tmp_path: Path) -> None:
    found = scanned(DISPUTED[name], tmp_path)
    expected = Verdict.NOT_SCANNED if name in CLOSED else Verdict.MALFORMED
    assert found.verdict is expected, (name, said(found))
    assert found.problems[0].detail
    result = run("scan", tmp_path / "file")
    assert result.code == 3, result.out


def test_danger_is_told_before_damage(tmp_path: Path) -> None:
    """What runs does so before the damage is met."""
    data = zips.build([member(data=BAD).but(crc=1), member("archive/x", b"y")])
    found = scanned(data, tmp_path)
    assert found.verdict is Verdict.DANGEROUS
    assert "checksum" in found.problems[0].detail
    assert run("scan", tmp_path / "file").code == 1


def test_deeply_nested_files_are_refused_not_skipped(tmp_path: Path) -> None:
    data = BAD
    for _ in range(12):
        data = zipped({"x": data})
    found = scanned(data, tmp_path)
    assert found.verdict is Verdict.NOT_SCANNED
    assert "deep" in found.problems[0].detail


HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(100)


@pytest.mark.parametrize("block", [0, 512, 1024, 4096, 1 << 20])
def test_hdf5_is_recognised_behind_a_user_block(block: int, tmp_path: Path) -> None:
    for data in (bytes(block), b"\x80\2N.".ljust(block), b"text ".ljust(block)):
        found = scanned(data[:block] + HDF5, tmp_path)
        assert found.verdict is Verdict.NOT_SCANNED, data[:8]
        assert "HDF5" in found.problems[0].detail
    assert scanned(zipped({"weights.h5": bytes(block) + HDF5}), tmp_path).verdict in (
        Verdict.NOT_SCANNED,
        Verdict.MALFORMED,
    )


@pytest.mark.parametrize("block", [512, 2048])
def test_a_pickle_in_the_user_block_of_hdf5_is_reported(block: int, tmp_path: Path) -> None:
    assert scanned(BAD.ljust(block, b"\0") + HDF5, tmp_path).verdict is Verdict.DANGEROUS


@pytest.mark.parametrize("block", [513, 1000, 1536])
def test_no_hdf5_begins_elsewhere(block: int, tmp_path: Path) -> None:
    assert scanned(bytes(block) + HDF5, tmp_path).verdict is Verdict.NOTHING

"""`scan`: what every kind of file would run when loaded, and that weights are nothing but that."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import resource
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
import torch

from cgpt_convert.pickles.dangerous import is_dangerous
from cgpt_convert.scanning.look import scan_file
from cgpt_convert.scanning.names import ALLOWED, Rule
from cgpt_convert.scanning.result import Scanned, Verdict
from tests import zips
from tests.hostile import DANGEROUS, FOREIGN, HARMLESS, Payload, payload
from tests.running import environ, run

BAD = payload(4)
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int64)}


def scanned(data: bytes, folder: Path, *allow: str, name: str = "file") -> Scanned:
    path = folder / name
    path.write_bytes(data)
    return scan_file(str(path), Rule(allow))


def said(found: Scanned) -> str:
    return "\n".join(map(str, found.sightings))


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


# -- pickles


@pytest.mark.parametrize("name", DANGEROUS)
def test_what_would_run_is_dangerous_and_shown_with_its_arguments(
    name: str, tmp_path: Path
) -> None:
    data, shown = DANGEROUS[name]
    found = scanned(data, tmp_path)
    assert (found.verdict, shown in said(found)) == (Verdict.DANGEROUS, True), said(found)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_on_the_list_is_foreign_and_named(name: str, tmp_path: Path) -> None:
    data, shown = FOREIGN[name]
    found = scanned(data, tmp_path)
    assert (found.verdict, shown in said(found)) == (Verdict.FOREIGN, True), said(found)


@pytest.mark.parametrize("name", HARMLESS)
def test_pickles_without_names_are_weights_only(name: str, tmp_path: Path) -> None:
    assert scanned(HARMLESS[name], tmp_path).verdict is Verdict.WEIGHTS


@pytest.mark.parametrize("name", DANGEROUS)
def test_each_is_found_as_an_object_in_a_torch_file(name: str, tmp_path: Path) -> None:
    entries = zips.entries_of(saved(WEIGHTS))
    entries["archive/data.pkl"] = zips.Entry("archive/data.pkl", DANGEROUS[name][0])
    assert scanned(zips.build(entries.values()), tmp_path).verdict is Verdict.DANGEROUS


def test_names_that_torch_allows_are_allowed() -> None:
    from torch._weights_only_unpickler import _get_allowed_globals

    assert _get_allowed_globals().keys() <= ALLOWED


def test_what_python_can_run_is_dangerous_by_name() -> None:
    for name in ("os.system", "posix.system", "nt.system", "subprocess.run", "builtins.exec"):
        assert is_dangerous(*name.rsplit(".", 1)), name
    for name in ("__builtin__.apply", "commands.getoutput", "runpy.run_path", "pickle.loads"):
        assert is_dangerous(*name.rsplit(".", 1)), name
    for name in ("argparse.Namespace", "pathlib.PosixPath", "datetime.datetime", "team.Config"):
        assert not is_dangerous(*name.rsplit(".", 1)), name


# -- containers


def legacy(value: Any) -> bytes:
    return saved(value, _use_new_zipfile_serialization=False)


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


@pytest.mark.parametrize("suffix", ["png", "txt", "safetensors", "gguf", "json", "7z", "py", ""])
def test_no_suffix_hides_it(suffix: str, tmp_path: Path) -> None:
    for data in (BAD, payload(0), zipped({"data.pkl": BAD})):
        assert scanned(data, tmp_path, name=f"x.{suffix}").verdict is Verdict.DANGEROUS


@pytest.mark.parametrize("new", [True, False])
def test_torchs_files(new: bool, tmp_path: Path) -> None:
    options = {"_use_new_zipfile_serialization": new}
    good, bad = saved(WEIGHTS, **options), saved({**WEIGHTS, "x": Payload()}, **options)
    assert scanned(good, tmp_path).verdict is Verdict.WEIGHTS
    found = scanned(bad, tmp_path)
    assert (found.verdict, found.kind.startswith("PyTorch")) == (Verdict.DANGEROUS, True)


@pytest.mark.parametrize("protocol", range(6))
def test_torchs_files_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    for new in (True, False):
        options = {"_use_new_zipfile_serialization": new, "pickle_protocol": protocol}
        assert scanned(saved(WEIGHTS, **options), tmp_path).verdict is Verdict.WEIGHTS
        assert scanned(saved(Payload(), **options), tmp_path).verdict is Verdict.DANGEROUS


def test_a_pickled_tensor_is_foreign_and_the_file_in_it_is_looked_into(tmp_path: Path) -> None:
    found = scanned(pickle.dumps(torch.zeros(3)), tmp_path)
    assert found.verdict is Verdict.FOREIGN
    assert (found.pickles, "torch.storage._load_from_bytes" in said(found)) == (6, True)


def test_in_torchs_old_tar_every_pickle_between_the_storages_is_looked_at(tmp_path: Path) -> None:
    key, cls = pickle.dumps(1, 2), b"ctorch\nFloatStorage\n"
    storage = b"\x80\2(K\1X\3\0\0\0cpu" + cls + b"t." + struct.pack("<q", 2) + bytes(8)
    bad = b"\x80\2(K\2" + BAD[2:-1] + b"t."
    parts = {"sys_info": pickle.dumps({}, 2), "pickle": pickle.dumps({}, 2)}
    good = {**parts, "tensors": pickle.dumps(0, 2), "storages": key + storage + pickle.dumps([], 2)}
    assert scanned(tarred(good), tmp_path).verdict is Verdict.WEIGHTS
    for hidden in (pickle.dumps(2, 2) + storage + bad, key + storage + BAD):
        found = scanned(tarred({**good, "storages": hidden}), tmp_path)
        assert found.verdict is Verdict.DANGEROUS
        assert "storages, byte" in said(found)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_weights_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    found = scan_file(str(path), Rule())
    assert found.verdict is Verdict.WEIGHTS
    assert [note.rule.id for note in found.notes] == ["CGPT018"]
    assert found.kind == run("inspect", path, "--json").json["kind"] == "TorchScript archive"


def test_object_arrays_of_plain_values_are_weights_only(tmp_path: Path) -> None:
    assert scanned(npy(np.array([1, "a"], dtype=object)), tmp_path).verdict is Verdict.WEIGHTS
    fields = np.zeros(2, dtype=[("a", "f4"), ("b", "i8")])
    assert scanned(npy(fields), tmp_path).verdict is Verdict.WEIGHTS


# -- files that readers disagree about, or that cannot be looked into


def member(name: str = "archive/data.pkl", data: bytes = b"\x80\2N.") -> zips.Entry:
    return zips.Entry(name, data)


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


@pytest.mark.parametrize("name", DISPUTED)
def test_what_readers_dispute_is_malformed_and_says_why(name: str, tmp_path: Path) -> None:
    found = scanned(DISPUTED[name], tmp_path)
    assert found.verdict is Verdict.MALFORMED, (name, said(found))
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
    assert found.verdict is Verdict.MALFORMED
    assert "deep" in found.problems[0].detail


# -- no false alarms


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
        f"t{i}": torch.frombuffer(bytearray(b + rng.bytes(400)), dtype=torch.uint8)
        for i, b in enumerate(beginnings * 40)
    }
    found = scanned(saved(tensors), tmp_path)
    assert (found.verdict, found.pickles) == (Verdict.WEIGHTS, 1), found


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
    assert "1 file holds no weights and no pickle" in result.out
    assert result.out.splitlines()[-1] == "1 file, without weights"


def test_the_last_line_counts_the_files_also_if_there_are_none(tmp_path: Path) -> None:
    assert run("scan", tmp_path).out == "0 files\n"
    (tmp_path / "bad.bin").write_bytes(BAD)
    (tmp_path / "own.bin").write_bytes(FOREIGN["a class"][0])
    (tmp_path / "good.bin").write_bytes(saved(WEIGHTS))
    (tmp_path / "text").write_text("text")
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    assert run("scan", tmp_path).out.splitlines()[-1] == (
        "4 files: 1 with weights only, 1 with foreign objects, 1 dangerous, 1 without weights; "
        "1 path that cannot be read"
    )


@pytest.mark.parametrize(
    ("count", "told"), [(1, ""), (2, "both "), (3, "all ")], ids=["one", "two", "three"]
)
def test_the_last_line_says_it_once_of_files_that_are_alike(
    tmp_path: Path, count: int, told: str
) -> None:
    alike = {
        "with weights only": saved(WEIGHTS),
        "with foreign objects": FOREIGN["a class"][0],
        "dangerous": BAD,
        "malformed": saved(WEIGHTS)[:-30],
    }
    for verdict, data in alike.items():
        (tmp_path / verdict).mkdir()
        for number in range(count):
            (tmp_path / verdict / f"{number}.bin").write_bytes(data)
        line = run("scan", tmp_path / verdict).out.splitlines()[-1]
        assert line == f"{count} file{'s' * (count > 1)}, {told}{verdict}"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("html.bin", b"<html><body>Not found</body></html>", "a web page"),
        ("zero.PT", bytes(5000), "a file of zeros"),
        ("x.safetensors", b"", "an empty file"),
        ("x.gguf", b"<?xml version='1.0'?><Error/>", "an XML document"),
    ],
)
def test_what_is_called_like_weights_and_holds_none_is_named(
    name: str, data: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "README.md").write_bytes(data)
    result = run("scan", tmp_path)
    assert result.code == 0
    assert f"note    {tmp_path / name}: {words}, not weights\n" in result.out
    assert "README.md" not in result.out
    assert "2 files hold no weights" in result.out


def test_weights_can_be_required(tmp_path: Path) -> None:
    result = run("scan", tmp_path, "--require-weights")
    assert (result.code, "FAILED  no weight file in 0 files\n" in result.out) == (1, True)
    (tmp_path / "page.bin").write_bytes(b"<html></html>")
    result = run("scan", tmp_path, "--require-weights", "--json")
    assert (result.code, result.json["ok"]) == (1, False)
    (tmp_path / "good.bin").write_bytes(saved(WEIGHTS))
    assert run("scan", tmp_path, "--require-weights").code == 0


def test_raw_tensors_are_called_so_where_a_mapping_names_them(tmp_path: Path) -> None:
    (tmp_path / "good.bin").write_bytes(saved({**WEIGHTS, "zeros": torch.zeros(5000)}))
    assert run("extract", tmp_path / "good.bin", "-o", tmp_path / "out").code == 0
    (tmp_path / "out" / "7").write_bytes(bytes(100))  # nothing names it
    told = run("scan", tmp_path / "out", "--require-weights")
    assert told.code == 0
    assert "3 files of raw tensors, 1 file of zeros, 1 JSON document" in told.out
    (tmp_path / "out" / "mapping.json").write_text("{}")
    assert "raw tensors" not in run("scan", tmp_path / "out").out
    kinds = {file["kind"] for file in run("scan", tmp_path / "out", "--json").json["files"]}
    assert kinds.isdisjoint({"file of raw tensors"})


def test_this_project_is_weights_only() -> None:
    top = Path(__file__).parents[1]
    for folder in ("cgpt_convert", "mappings", "docs", "tests"):
        assert run("scan", top / folder).code == 0


# -- bounds


def test_large_arguments_are_passed_over_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.pkl"
    with path.open("wb") as file:
        file.write(b"\x80\5\x96" + struct.pack("<Q", 3 << 30))
        file.seek(3 << 30, os.SEEK_CUR)
        file.write(b"0" + BAD[2:])
    script = (
        "import sys\nfrom cgpt_convert.scanning.look import scan_file\n"
        "from cgpt_convert.scanning.names import Rule\n"
        "print(scan_file(sys.argv[1], Rule()).verdict.value)\n"
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


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    inner = gzip.compress(bytes(64 << 20))
    data = gzip.compress(inner * 20)
    found = scanned(data, tmp_path)
    assert not found.sightings
    assert found.verdict in (Verdict.MALFORMED, Verdict.NOTHING)


# -- the command


def test_folders_patterns_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / ".hidden").write_bytes(BAD)
    (tmp_path / "good.bin").write_bytes(saved(WEIGHTS))
    (tmp_path / "loop").symlink_to(tmp_path / "deep")
    monkeypatch.chdir(tmp_path)
    whole = run("scan", "--json", ".").json
    assert [(file["path"], file["verdict"]) for file in whole["files"]] == [
        ("./deep/er/.hidden", "dangerous"),
        ("./good.bin", "weights only"),
    ]
    assert whole["verdicts"]["dangerous"] == 1
    assert run("scan", "*.bin").code == 0
    assert run("scan", "**/.hidden", "good.bin").code == 1
    assert run("scan", "nothing*").code == 2
    assert run("scan", "nothing").code == 2
    assert run("scan").code == 2


def test_links_are_followed_as_model_caches_have_them(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a").write_bytes(BAD)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "pytorch_model.bin").symlink_to(tmp_path / "blobs" / "0a")
    assert run("scan", tmp_path / "snapshot").code == 1
    (tmp_path / "snapshot" / "broken").symlink_to(tmp_path / "gone")
    assert run("scan", tmp_path / "snapshot").code == 3


def test_what_cannot_be_read_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    result = run("scan", tmp_path, "/dev/null", "--json")
    assert result.code == 3
    assert [error["path"] for error in result.json["errors"]] == [str(tmp_path / "broken")]
    (file,) = result.json["files"]
    assert file["problems"] == [{"id": "CGPT017", "detail": "not a regular file"}]


def test_bytes_between_records_are_noted(tmp_path: Path) -> None:
    found = scanned(zips.build([member()], before_directory=bytes(40)), tmp_path)
    assert [note.rule.id for note in found.notes] == ["CGPT004"]
    assert "bytes between records" in run("scan", tmp_path / "file").out


def test_a_teams_own_classes_can_be_allowed_by_their_exact_name(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(FOREIGN["a class"][0])
    assert run("scan", path).code == 1
    result = run("scan", path, "--allow", "team.models.Config", "--allow", "team.Other")
    assert result.code == 0
    assert "ok      " in result.out
    assert "weights and allowed: team.models.Config (bare pickle, 1 pickle)" in result.out
    result = run("scan", path, "--allow", "team.models.Config", "--json")
    assert result.json["files"][0]["allowed"] == ["team.models.Config"]
    for other in ("team.models.Confi", "team.models", "team.models.Config.x", "team.*"):
        assert run("scan", path, "--allow", other).code == 1
    assert run("scan", path, "--allow", "Config").code == 2
    assert run("scan", path, "--allow", "os.system").code == 2


def test_threads_change_nothing(tmp_path: Path) -> None:
    for index, (data, _) in enumerate((*DANGEROUS.values(), *FOREIGN.values())):
        (tmp_path / f"{index:03}").write_bytes(data)
    one, four = (run("scan", "--json", "--jobs", n, tmp_path) for n in (1, 4))
    assert one == four
    assert one.json["verdicts"]["dangerous"] == len(DANGEROUS)


def test_nothing_of_the_file_reaches_the_terminal_raw(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(b"\x80\2cteam\n\x1b[2Jx\n)R.")
    for form in ("text", "json", "junit", "sarif", "github"):
        assert "\x1b" not in run("scan", path, "--format", form).out


def test_json_has_all_that_was_found(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(saved({"x": Payload()}))
    result = run("scan", "--json", path)
    (file,) = result.json["files"]
    assert (result.code, result.json["ok"], file["verdict"]) == (1, False, "dangerous")
    (sighting,) = file["sightings"]
    assert sighting["rule"] == "CGPT015"
    assert (sighting["how"], sighting["calls"]) == ("calls", 1)
    data = zipfile.ZipFile(path).read(sighting["place"])
    assert data[sighting["position"] : sighting["position"] + 1] == b"R"
    assert json.loads(result.out) == result.json

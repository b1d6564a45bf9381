"""The command: which files are scanned, and what is said of them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import zips
from tests.helpers.hostile_pickles import DANGEROUS, FOREIGN, Payload
from tests.helpers.running import run
from tests.helpers.scan_files import BAD, WEIGHTS, member, scanned
from tests.helpers.torch_save import saved


def test_the_last_line_counts_the_files_also_if_there_are_none(tmp_path: Path) -> None:
    assert run("scan", tmp_path).out == "no files to scan\n"
    (tmp_path / "bad.bin").write_bytes(BAD)
    (tmp_path / "own.bin").write_bytes(FOREIGN["a class"][0])
    (tmp_path / "good.bin").write_bytes(saved(WEIGHTS))
    (tmp_path / "text").write_text("text")
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    assert run("scan", tmp_path).out.splitlines()[-1] == (
        "4 files: 1 dangerous, 1 foreign, 1 clean, 1 without weights; 1 path that cannot be read"
    )


@pytest.mark.parametrize(
    ("count", "told"), [(1, ""), (2, "both "), (3, "all ")], ids=["one", "two", "three"]
)
def test_the_last_line_says_it_once_of_files_that_are_alike(
    tmp_path: Path, count: int, told: str
) -> None:
    alike = {
        "clean": saved(WEIGHTS),
        "foreign": FOREIGN["a class"][0],
        "dangerous": BAD,
        "malformed": saved(WEIGHTS)[:-30],
    }
    for verdict, data in alike.items():
        (tmp_path / verdict).mkdir()
        for number in range(count):
            (tmp_path / verdict / f"{number}.bin").write_bytes(data)
        line = run("scan", tmp_path / verdict).out.splitlines()[-1]
        assert line == f"{count} file{'s' * (count > 1)}, {told}{verdict}"


def test_weights_can_be_required(tmp_path: Path) -> None:
    result = run("scan", tmp_path, "--require-weights")
    assert (result.code, "failed       no weight file in 0 files\n" in result.out) == (1, True)
    (tmp_path / "page.bin").write_bytes(b"<html></html>")
    result = run("scan", tmp_path, "--require-weights", "--json")
    assert (result.code, result.json["ok"]) == (1, False)
    (tmp_path / "good.bin").write_bytes(saved(WEIGHTS))
    assert run("scan", tmp_path, "--require-weights").code == 0


def test_raw_tensors_are_called_so_where_a_mapping_names_them(tmp_path: Path) -> None:
    (tmp_path / "good.bin").write_bytes(saved({**WEIGHTS, "zeros": np.zeros(5000, np.float32)}))
    assert run("extract", tmp_path / "good.bin", "-o", tmp_path / "out").code == 0
    (tmp_path / "out" / "7").write_bytes(bytes(100))  # nothing names it
    told = run("scan", tmp_path / "out", "--require-weights")
    assert told.code == 0
    assert "3 files of raw tensors, 1 file of zeros, 1 JSON document" in told.out
    (tmp_path / "out" / "mapping.json").write_text("{}")
    assert "raw tensors" not in run("scan", tmp_path / "out").out
    kinds = {file["kind"] for file in run("scan", tmp_path / "out", "--json").json["files"]}
    assert kinds.isdisjoint({"file of raw tensors"})


def test_folders_patterns_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / ".hidden").write_bytes(BAD)
    (tmp_path / "good.bin").write_bytes(saved(WEIGHTS))
    (tmp_path / "loop").symlink_to(tmp_path / "deep")
    monkeypatch.chdir(tmp_path)
    whole = run("scan", "--json", ".").json
    assert [(file["path"], file["verdict"]) for file in whole["files"]] == [
        ("./deep/er/.hidden", "dangerous"),
        ("./good.bin", "clean"),
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
    assert file["problems"] == [
        {"id": "CGPT017", "detail": "the path is not a regular file; save the data to a file first"}
    ]


def test_bytes_between_records_are_noted(tmp_path: Path) -> None:
    found = scanned(zips.build([member()], before_directory=bytes(40)), tmp_path)
    assert [note.rule.id for note in found.notes] == ["CGPT004"]
    assert "bytes between the records" in run("scan", tmp_path / "file").out


def test_a_teams_own_classes_can_be_allowed_by_their_exact_name(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(FOREIGN["a class"][0])
    assert run("scan", path).code == 1
    result = run("scan", path, "--allow", "team.models.Config", "--allow", "team.Other")
    assert result.code == 0
    assert f"clean        {path} (plain pickle; allowed: team.models.Config)" in result.out
    result = run("scan", path, "--allow", "team.models.Config", "--json")
    assert result.json["files"][0]["allowed"] == ["team.models.Config"]
    assert (
        "note         --allow team.Other matches no name in these files"
        in run("scan", path, "--allow", "team.models.Config", "--allow", "team.Other").out
    )
    assert result.json["unused"] == []
    for other in ("team.models.Confi", "team.models", "team.models.Config.x"):
        result = run("scan", path, "--allow", other)
        assert result.code == 1
        assert f"--allow {other} matches no name" in result.out
        assert run("scan", path, "--allow", other, "--json").json["unused"] == [other]
    for pattern in ("team.*", "team.models.Conf?g", "*", "team.models.[A-Z]onfig"):
        result = run("scan", path, "--allow", pattern)
        assert (result.code, "exact names" in result.err) == (2, True)
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


UNKNOWN = bytes(range(1, 256)) * 3
UNKNOWN_KIND = "unknown file type; it may be encrypted or belong to another framework"


def test_an_unknown_file_with_a_weight_files_name_is_not_scanned(tmp_path: Path) -> None:
    for name in ("model.bin", "model.joblib", "x.pkl.xz", "a.PT", "b.lz4"):
        path = tmp_path / name
        path.write_bytes(UNKNOWN)
        result = run("scan", path)
        assert result.code == 3, name
        heading = f"not scanned  {path} (file of an unknown kind)\n"
        assert heading + f"  CGPT017  {UNKNOWN_KIND}\n" in result.out
        assert result.out.splitlines()[-1] == "1 file, not scanned"
    for name in ("tokenizer.model", ".DS_Store", "data"):
        path = tmp_path / name
        path.write_bytes(UNKNOWN)
        assert run("scan", path).code == 0


def test_an_unknown_part_of_an_archive_is_not_scanned(tmp_path: Path) -> None:
    entries = [member(), member("archive/other", UNKNOWN)]
    for name, expected in (("x.pt", 3), ("x.zip", 3), ("x", 3)):
        path = tmp_path / name
        path.write_bytes(zips.build(entries))
        result = run("scan", path, "--json")
        assert result.code == expected
        (file,) = result.json["files"]
        assert file["verdict"] == "not scanned"
        assert file["problems"] == [{"id": "CGPT017", "detail": f"archive/other: {UNKNOWN_KIND}"}]


def test_programs_are_ordinary_in_a_python_environment_only(tmp_path: Path) -> None:
    inside = tmp_path / "lib" / "site-packages" / "team"
    inside.mkdir(parents=True)
    for path in (tmp_path / "libops.so", inside / "ops.so"):
        path.write_bytes(b"\x7fELF" + UNKNOWN)
    assert run("scan", tmp_path / "libops.so").code == 3
    assert run("scan", inside).code == 0
    (inside / "model.pt").write_bytes(b"\x7fELF" + UNKNOWN)
    assert run("scan", inside).code == 3


LEVELS = {
    "clean": (0, 0, 0),
    "text": (0, 0, 0),
    "not scanned": (3, 0, 0),
    "foreign": (1, 1, 0),
    "malformed": (3, 3, 3),
    "dangerous": (1, 1, 1),
}


@pytest.mark.parametrize("verdict", LEVELS)
def test_the_level_that_fails_can_be_chosen(verdict: str, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(
        {
            "clean": saved(WEIGHTS),
            "text": b"text",
            "not scanned": UNKNOWN,
            "foreign": FOREIGN["a class"][0],
            "malformed": saved(WEIGHTS)[:-30],
            "dangerous": BAD,
        }[verdict]
    )
    for level, code in zip(("not-scanned", "foreign", "dangerous"), LEVELS[verdict], strict=True):
        for form in ("text", "json", "junit", "sarif", "github"):
            result = run("scan", path, "--fail-on", level, "--format", form)
            assert result.code == code, (level, form)
            if verdict not in ("clean", "text"):
                assert "CGPT" in result.out, (level, form)  # accepted, but still reported

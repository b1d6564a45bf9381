"""The policy file: what a team accepts, and that nothing is accepted in silence."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.helpers.hostile_pickles import FOREIGN
from tests.helpers.running import run
from tests.helpers.scan_files import BAD, WEIGHTS
from tests.helpers.torch_save import saved

CLASS = FOREIGN["a class"][0]  # names team.models.Config
UNKNOWN = bytes(range(1, 256))


def policy(folder: Path, text: str) -> Path:
    path = folder / "cgpt-scan.toml"
    path.write_text(text)
    return path


def expecting(data: bytes, verdict: str) -> str:
    digest = hashlib.sha256(data).hexdigest()
    return f'[[expect]]\nsha256 = "{digest}"\nverdict = "{verdict}"\nreason = "read by hand"\n'


def test_allowed_names_have_reasons(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(CLASS)
    entry = '[[allow]]\nname = "team.models.Config"\nreason = "ours"\n'
    path = policy(tmp_path, entry)
    assert run("scan", tmp_path / "m.bin").code == 1
    assert run("scan", tmp_path / "m.bin", "--policy", path).code == 0
    path = policy(tmp_path, entry.replace("ours", " "))
    result = run("scan", tmp_path / "m.bin", "--policy", path)
    assert (result.code, "with text values: name, reason" in result.err) == (2, True)
    path = policy(tmp_path, entry.replace("team.models.Config", "os.system"))
    assert run("scan", tmp_path / "m.bin", "--policy", path).code == 2


def test_excluded_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "fixtures").mkdir()
    (tmp_path / "fixtures" / "bad.bin").write_bytes(BAD)
    (tmp_path / "good.bin").write_bytes(saved(WEIGHTS))
    path = policy(tmp_path, '[[exclude]]\npaths = "*/fixtures/*"\nreason = "tests"\n')
    assert run("scan", tmp_path).code == 1
    for form in ("text", "json", "junit", "github"):
        result = run("scan", tmp_path, "--policy", path, "--format", form)
        assert result.code == 0
        assert "1 file excluded by the policy" in result.out


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (BAD, "dangerous"),
        (CLASS, "foreign"),
        (UNKNOWN, "not scanned"),
        (saved(1)[:-9], "malformed"),
    ],
)
def test_the_verdict_can_be_expected_of_exactly_these_bytes(
    data: bytes, verdict: str, tmp_path: Path
) -> None:
    file = tmp_path / "m.bin"
    file.write_bytes(data)
    path = policy(tmp_path, expecting(data, verdict))
    result = run("scan", file, "--policy", path)
    assert (result.code, "read by hand" in result.out) == (0, True)
    path = policy(tmp_path, expecting(data, "clean"))
    result = run("scan", file, "--policy", path)
    assert result.code != 0
    assert f"the policy expects the verdict 'clean', but it is '{verdict}'" in result.out
    path = policy(tmp_path, expecting(data + b"x", verdict))
    result = run("scan", file, "--policy", path)
    assert (result.code != 0, "matches no scanned file" in result.out) == (True, True)


def test_a_better_verdict_than_expected_fails_too(tmp_path: Path) -> None:
    data = saved(WEIGHTS)
    (tmp_path / "m.bin").write_bytes(data)
    path = policy(tmp_path, expecting(data, "foreign"))
    assert run("scan", tmp_path / "m.bin", "--policy", path).code == 1


def test_the_level_is_that_of_the_policy_unless_the_option_is_given(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(UNKNOWN)
    path = policy(tmp_path, 'fail-on = "foreign"\n')
    assert run("scan", tmp_path / "m.bin", "--policy", path).code == 0
    assert run("scan", tmp_path / "m.bin", "--policy", path, "--fail-on", "not-scanned").code == 3


def test_no_policy_is_read_that_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.bin").write_bytes(BAD)
    policy(tmp_path, expecting(BAD, "dangerous"))
    assert run("scan", ".").code == 1


@pytest.mark.parametrize(
    "text",
    [
        "fail-on = 'never'",
        "other = 1",
        "[[allow]]\nname = 1\nreason = 'x'",
        "[[expect]]\nsha256 = 'abc'\nverdict = 'clean'\nreason = 'x'",
        f"[[expect]]\nsha256 = '{'0' * 64}'\nverdict = 'fine'\nreason = 'x'",
        "not toml",
        "allow = 3",
    ],
)
def test_a_policy_that_cannot_be_read_is_a_usage_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(saved(WEIGHTS))
    result = run("scan", tmp_path / "m.bin", "--policy", policy(tmp_path, text))
    assert (result.code, "cgpt-scan.toml" in result.err) == (2, True)
    assert run("scan", tmp_path / "m.bin", "--policy", tmp_path / "gone").code == 2

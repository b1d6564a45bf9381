"""The text output of `scan`: its order, its groups, and the commands that it suggests."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from tests.helpers.hostile_pickles import DANGEROUS, FOREIGN
from tests.helpers.running import environ, run
from tests.helpers.scan_files import BAD, WEIGHTS
from tests.helpers.torch_save import saved

UNKNOWN = bytes(range(1, 256)) * 3
CLASS = FOREIGN["a class"][0]  # calls team.models.Config


def test_the_worst_files_come_first(tmp_path: Path) -> None:
    contents = {
        "1.bin": saved(WEIGHTS),
        "2.bin": UNKNOWN,
        "3.bin": CLASS,
        "4.bin": saved(WEIGHTS)[:-30],
        "5.bin": BAD,
        "6.bin": b"<html>",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    lines = run("scan", tmp_path).out.splitlines()
    headings = [line for line in lines if f"  {tmp_path}{os.sep}" in line and line[0] != " "]
    assert headings == [
        f"dangerous    {tmp_path / '5.bin'} (plain pickle)",
        f"malformed    {tmp_path / '4.bin'} (truncated zip archive)",
        f"foreign      {tmp_path / '3.bin'} (plain pickle)",
        f"not scanned  {tmp_path / '2.bin'} (file of an unknown kind)",
        f"clean        {tmp_path / '1.bin'} (PyTorch zip archive)",
        f"not weights  {tmp_path / '6.bin'} (web page)",
    ]
    advice = [line.partition(":")[0].strip() for line in lines[lines.index("what to do:") + 1 :]]
    verdicts = ["dangerous", "malformed", "foreign", "not scanned"]
    assert [word for word in advice if word in verdicts] == verdicts
    counts = (
        "6 files: 1 dangerous, 1 malformed, 1 foreign, 1 not scanned, 1 clean, 1 without weights"
    )
    assert lines[-1] == counts


def test_accepted_files_come_after_those_that_fail(tmp_path: Path) -> None:
    (tmp_path / "1.bin").write_bytes(CLASS)
    (tmp_path / "2.bin").write_bytes(saved(WEIGHTS)[:-30])
    out = run("scan", tmp_path, "--fail-on", "dangerous").out
    assert out.index("2.bin") < out.index("1.bin")
    assert "accepted, as --fail-on or the policy says" in out
    assert "--allow" not in out


def test_a_name_is_listed_once_with_the_number_of_its_calls(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"\x80\2(" + b"cteam\nOne\n)R" * 3 + b"cteam\nTwo\n)R" + b"t.")
    lines = run("scan", path).out.splitlines()
    assert lines[1:4] == ["  CGPT008  would call", "      team.One() (3 times)", "      team.Two()"]


def test_the_same_call_in_several_records_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"
    nested = b"\x80\2cteam\nOne\n)R."
    inner = b"B" + len(nested).to_bytes(4, "little") + nested
    path.write_bytes(b"\x80\4(" + inner + inner + b"t.")
    calls = [line for line in run("scan", path).out.splitlines() if "team.One()" in line]
    assert len(calls) == 1
    assert calls[0].endswith("would call team.One() (2 times, in 2 places)")


@pytest.mark.parametrize("count", [10, 11, 300])
def test_many_clean_files_are_counted(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"{number}.bin").write_bytes(saved(WEIGHTS))
    lines = run("scan", tmp_path).out.splitlines()
    if count == 10:
        assert len([line for line in lines if line.startswith("clean        ")]) == 10
    else:
        assert lines == [
            f"clean        {count} files ({count} PyTorch zip archives)",
            f"{count} files, all clean",
        ]


def test_a_file_with_thousands_of_names_takes_a_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    names = b"".join(b"cteam\nName%d\n)R" % number for number in range(3000))
    path.write_bytes(b"\x80\2(" + names + b"t.")
    result = run("scan", path)
    assert result.code == 1
    assert "and 2,988 more (--json lists all)" in result.out
    assert "allow them in a policy file" in result.out
    assert len(result.out.splitlines()) < 25


def suggested(out: str, command: str) -> list[str] | None:
    """The words of the suggested command, as a shell splits them; None if there is none."""
    start = f"      cgpt-convert {command} "
    lines = [line for line in out.splitlines() if line.startswith(start)]
    assert len(lines) <= 1
    return shlex.split(lines[0])[1:] if lines else None


@pytest.mark.parametrize("name", FOREIGN)
def test_the_suggested_options_are_all_that_is_needed(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(FOREIGN[name][0])
    out = run("scan", tmp_path).out
    words = suggested(out, "scan")
    assert (words is None) == ("code that --allow cannot accept" in out)
    if words is not None:
        assert run(*words).code == 0


@pytest.mark.parametrize("name", ["a class", "a name alone", "a torch function"])
def test_options_are_suggested_for_ordinary_names(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(FOREIGN[name][0])
    assert suggested(run("scan", tmp_path).out, "scan")


@pytest.mark.parametrize("name", DANGEROUS)
def test_nothing_dangerous_is_suggested(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(DANGEROUS[name][0])
    assert "--allow" not in run("scan", tmp_path).out


def test_options_and_paths_are_repeated(tmp_path: Path) -> None:
    one, two = tmp_path / "-m.bin", tmp_path / "n.bin"
    for path, name in ((one, b"One"), (two, b"Two")):
        path.write_bytes(b"\x80\2cteam\n" + name + b"\n)R.")
    policy = tmp_path / "a policy.toml"
    policy.write_text("fail-on = 'foreign'\n")
    words = suggested(run("scan", two, one, "--policy", policy, "--allow", "team.One").out, "scan")
    options = ("--policy", str(policy), "--allow", "team.One", "--allow", "team.Two")
    assert words == ["scan", str(two), str(one), *options]


def test_the_command_without_the_code_works(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(saved({**WEIGHTS, "scale": Decimal(1)}))
    words = suggested(run("scan", path).out, "convert")
    assert words is not None
    assert run(*words).code == 0
    assert run("scan", tmp_path / "m.safetensors").code == 0


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_lines_fit_into_the_terminal(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (data, _) in enumerate((*DANGEROUS.values(), *FOREIGN.values())):
        (tmp_path / f"{number}.bin").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cgpt_convert.cli.table.width", lambda **_: columns)
    monkeypatch.setattr("cgpt_convert.cli.scan_text.width", lambda **_: columns)
    for line in run("scan", ".").out.splitlines():
        assert len(line) <= columns or len(line.split()) <= 3, line


NAMES = [
    "it's",
    "a b",
    "$(touch x)",
    "-m.bin",
    "new\nline",
    "\x1b[2J",
    os.fsdecode(b"\xff.bin"),
    "ü",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_takes_the_suggestions_with_any_file_name(name: str, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    with open(path, "wb") as file:
        file.write(CLASS)
    command = [sys.executable, "-m", "cgpt_convert", "scan", "--", name]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, check=False, env=environ(LC_ALL="C.UTF-8")
    )
    assert done.returncode == 1, done
    (line,) = [
        line for line in done.stdout.splitlines() if line.startswith(b"      cgpt-convert scan")
    ]
    assert line.decode().isprintable()
    program = f'cgpt-convert() {{ {shlex.quote(sys.executable)} -m cgpt_convert "$@"; }}\n'
    again = subprocess.run(
        ["bash", "-c", program + line.decode()],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env=environ(LC_ALL="C.UTF-8"),
    )
    assert (again.returncode, again.stderr) == (0, b""), again
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]

"""Errors have one form: `error: where: what is wrong`, then `hint: what to do`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cgpt_convert.core.errors import Malformed
from tests.helpers.running import run
from tests.helpers.terminal import on_terminal

USAGE = {
    ("frob",): "no such command 'frob'",
    ("inspct", "m.bin"): "no such command 'inspct'",
    ("--frob",): "no such option --frob",
    ("inspect",): "missing argument SOURCE",
    ("scan",): "missing argument PATH",
    ("convert", "m.bin"): "missing option -o/--output",
    ("inspect", "a", "b"): "got unexpected extra argument (b)",
    ("convert", "m.bin", "-o"): "option '-o' requires an argument",
    ("inspect", "m.bin", "--frob"): "no such option --frob",
    ("inspect", "m.bin", "--matc", "x"): "no such option --matc",
    ("inspect", "m.bin", "--json=3"): "option '--json' does not take a value",
    ("inspect", "m.bin", "--retries", "-1"): "--retries: -1 is less than 0",
    ("inspect", "m.bin", "--retries", "x"): "--retries: 'x' is not a whole number",
    ("inspect", "m.bin", "--timeout", "x"): "--timeout: 'x' is not a number",
    ("inspect", "m.bin", "--timeout", "0"): "--timeout: 0.0 is not greater than 0",
    ("convert", "m.bin", "-o", "y", "--tied", "no"): "--tied: 'no' is not one of 'alias', 'copy'",
    ("generate", "m.bin", "Hello", "--ids", "1"): "pass exactly one of PROMPT, --ids and --request",
}


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_usage_errors_have_the_form_of_others(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.code, done.raw) == (2, b"")
    first, second = done.err.splitlines()
    assert first == f"error: {USAGE[words]}"
    command = "cgpt-convert" if words[0].startswith("-") else f"cgpt-convert {words[0]}"
    help_of = "cgpt-convert" if "command" in first else command
    assert second.startswith("hint: ")
    assert second.endswith((f"`{help_of} --help` shows the options", "lists the commands")) or (
        second.startswith(f"hint: usage: {command} [OPTIONS] ")
    )
    as_json = run(*words[:1], "--json", *words[1:])
    assert as_json.code == 2
    error = as_json.json["error"]
    assert (error["kind"], error["exit_code"]) == ("bad request", 2)
    if words[0] != "--frob":
        where = f"{error['where']}: " if error["where"] else ""
        assert first == f"error: {where}{error['message']}"
        assert second == f"hint: {error['hint']}"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("inspct", "m.bin"), "inspect"),
        (("inspect", "m.bin", "--matc"), "--match"),
        (("convert", "m.bin", "-o", "y", "--to", "safetensor"), "safetensors"),
    ],
)
def test_a_wrong_word_gets_the_nearest_right_one(words: tuple[str, ...], name: str) -> None:
    assert f"hint: did you mean {name}? " in run(*words).err


def test_a_name_like_no_other_gets_none() -> None:
    assert "did you mean" not in run("xyzzy").err


def test_the_program_alone_shows_its_help() -> None:
    done = run()
    assert (done.code, done.out) == (2, "")
    assert done.err == run("--help").out


def test_library_users_see_the_same_form() -> None:
    assert str(Malformed("damaged", where="m.bin", hint="copy it again")) == (
        "m.bin: damaged\nhint: copy it again"
    )
    assert str(Malformed("damaged")) == "damaged"


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_a_terminal_wraps_between_words(columns: int, tmp_path: Path) -> None:
    words = ("inspect", "a-long-name/of-a-file/that-is-not/there.bin", "--sort", "nothing")
    plain = run(*words).err
    shown = on_terminal(*words, folder=tmp_path, columns=columns, NO_COLOR="1").text
    assert shown.split() == plain.split()
    for line in shown.splitlines():
        assert len(line) <= columns or len(line.split()) == 1
    assert len(re.findall("^(?:error|hint): ", shown, re.MULTILINE)) == 2


def test_names_cannot_forge_lines(tmp_path: Path) -> None:
    name = str(tmp_path / "x\nhint: do something\x1b[2J")
    done = run("inspect", name)
    assert done.err.isascii()
    assert len(done.err.splitlines()) == 1
    assert r"x\nhint: do something\x1b[2J: no such file" in done.err


def test_the_word_error_is_red_on_a_terminal(tmp_path: Path) -> None:
    red = "\x1b[31m\x1b[1merror\x1b[0m: no such command 'frob'\n"
    assert on_terminal("frob", folder=tmp_path).text.startswith(red)
    assert on_terminal("frob", folder=tmp_path, TERM="dumb").text == run("frob").err

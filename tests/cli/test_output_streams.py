"""What appears where: results on standard output, all else on standard error, nothing too wide."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import vendor
from tests.helpers.running import PROGRAM, environ, run, spawn

HOSTILE = "w\x1b[31m\u202eevil\u2066\x07\r\n\t\x9b"
WIDE = "権重" * 20  # Chinese characters take two columns


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vendor.write(vendor.TINY, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose name, tensor names and other values try to steer the terminal."""
    state: dict[str, Any] = {
        HOSTILE: torch.ones(3),
        f"layer.{HOSTILE}.weight": torch.ones(2, 2).t(),
        WIDE: torch.zeros(1),
        "sparse\x1b[2J": torch.eye(3).to_sparse(),
        f"note {HOSTILE}": f"a value {HOSTILE} " + "long " * 100,
        WIDE + "s": "値" * 300,
    }
    path = tmp_path_factory.mktemp("hostile") / "mo\x1b[5mdel\u202e\nfake line.pt"
    return vendor.save(state, path)


def in_terminal(columns: int, *words: object, **environment: str) -> str:
    """All that the program shows on a terminal so many columns wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [*PROGRAM, *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environ(**{"TERM": "xterm-256color", **environment}),
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 1 << 16):
            shown += data
    except OSError:  # Linux says so where others report an end
        pass
    os.close(ours)
    assert process.wait() in (0, 1)
    text = shown.decode()
    assert "Traceback" not in text
    return text


def widths(shown: str) -> list[int]:
    """The columns of every line, escape sequences taken out."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    return [
        sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)
        for part in plain.split("\n")
        for line in part.rstrip("\r").split("\r")
    ]


def assert_fits(shown: str, columns: int) -> None:
    """No line is wider than the terminal, but a word that nothing can be done about."""
    for line in shown.replace("\r", "\n").split("\n"):
        assert max(widths(line)) <= columns or " " not in line.strip()


def assert_harmless(text: str) -> None:
    """No character but a line's end that does anything, or shows others in another order."""
    bad = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}
    assert not bad


SHOWN = [
    (40, "inspect --check"),
    (40, "inspect --tree"),
    (40, "inspect --stats"),
    (60, "inspect --tree --check"),
    (60, "inspect --stats"),
    (200, "inspect --stats --check"),
]


@pytest.mark.parametrize(("columns", "command"), SHOWN)
def test_nothing_is_wider_than_the_terminal(
    model: Path, hostile: Path, columns: int, command: str
) -> None:
    for path in (model, hostile):
        shown = in_terminal(columns, *command.split(), path, NO_COLOR="1")
        assert_fits(shown, columns)
        assert "\x1b" not in shown
        assert_harmless(shown.replace("\r", ""))


@pytest.mark.parametrize("columns", [40, 200])
def test_conversions_fit_the_terminal_too(
    model: Path, hostile: Path, tmp_path: Path, columns: int
) -> None:
    for index, path in enumerate((model, hostile)):
        chosen = ("--exclude", "sparse*")
        out = tmp_path / f"{index}.safetensors"
        for words in (
            ("convert", path, "-o", out, *chosen),
            ("extract", path, "-o", tmp_path / f"parameters{index}", *chosen),
        ):
            shown = in_terminal(columns, *words, NO_COLOR="1")
            assert_fits(shown, columns)
            assert_harmless(shown.replace("\r", ""))


def test_a_terminal_gets_bold_and_a_wide_one_the_whole_table(model: Path) -> None:
    shown = in_terminal(200, "inspect", model)
    assert "\x1b[1m" in shown
    assert "transformer.h.0.attn.masked_bias" in shown
    assert "tied to" in shown


def test_a_narrow_terminal_shows_whole_names_and_the_rest_below(model: Path) -> None:
    shown = in_terminal(40, "inspect", model, NO_COLOR="1").replace("\r", "")
    assert "\nname\n  dtype    shape" in shown
    assert "\ntransformer.h.0.attn.masked_bias\n  float32  scalar" in shown


def test_columns_that_do_not_fit_are_named_on_a_terminal_only(model: Path) -> None:
    shown = in_terminal(80, "inspect", model, NO_COLOR="1")
    header = re.search(r"^name .*$", shown, re.MULTILINE)
    told = re.search(r"columns not shown: (.*); use a wider terminal or --json", shown)
    assert header is not None
    assert told is not None
    every = {"name", "dtype", "shape", "strides", "storage", "offset", "bytes", "tied to"}
    assert {*re.split("  +", header[0].strip()), *told[1].split(", ")} == every
    for whole in (in_terminal(200, "inspect", model), spawn("inspect", model).out):
        assert "not shown" not in whole


def test_a_pipe_gets_whole_names_and_no_colour(model: Path) -> None:
    result = spawn("inspect", model)
    assert "\x1b" not in result.out
    assert "…" not in result.out
    assert "transformer.h.1.mlp.c_proj.weight" in result.out


@pytest.mark.parametrize("option", ["--sort=name", "--tree", "--stats", "--check"])
def test_control_characters_are_escaped(hostile: Path, option: str) -> None:
    result = run("inspect", option, hostile)
    assert_harmless(result.out + result.err)
    assert r"\x1b[31m" in result.out
    assert r"\u202e" in result.out


def test_control_characters_in_errors_are_escaped(hostile: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no\x1b[31m\u202e\nsuch"
    for words in (
        ("inspect", missing),
        ("convert", hostile, "-o", tmp_path / "out.safetensors"),
        ("convert", hostile, "-o", missing),
        ("convert", hostile, "-o", tmp_path / "out.npz", "--match", "nothing"),
        ("convert", hostile, "-o", tmp_path / "out.npz", "--root", "\x1b[31m"),
        ("extract", hostile, "--stdout", "\x1b[31m"),
        ("extract", hostile, "-o", missing / "deeper"),
    ):
        result = run(*words)
        assert result.code in (2, 3, 4)
        assert result.out == ""
        assert_harmless(result.err)


def test_json_has_names_as_they_are_and_only_ascii_on_the_wire(hostile: Path) -> None:
    result = run("inspect", hostile, "--json")
    assert result.raw.isascii()
    assert HOSTILE in {row["name"] for row in result.json["tensors"]}
    assert result.json["source"] == str(hostile)


def test_bars_and_sparklines_are_ascii_where_blocks_cannot_be_shown(model: Path) -> None:
    words = ("inspect", model, "--match", "*.wte.*")
    for environment in ({"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C"}, {"LANG": "POSIX"}):
        tree = spawn(*words, "--tree", **environment).raw
        assert b"100.0%  ##########" in tree
        stats = spawn(*words, "--stats", **environment).raw
        assert re.search(rb"256x64  +[.:=+*#@-]{5,} ", stats)
        assert (tree + stats).isascii()
    assert "100.0%  ██████████" in spawn(*words, "--tree", LANG="C.UTF-8").out


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_an_output_that_cannot_show_a_name_shows_an_escape(hostile: Path, encoding: str) -> None:
    result = spawn("inspect", hostile, PYTHONIOENCODING=encoding)
    assert result.code == 0
    assert ("権重" if encoding == "utf-8" else r"\u6a29\u91cd").encode() in result.raw


@pytest.mark.parametrize("words", [("inspect",), ("inspect", "--json")])
def test_a_reader_that_leaves_early_is_no_error(model: Path, words: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [*PROGRAM, *words, model], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ()
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate()[1] == b""
    assert process.returncode == 141


def test_a_reader_of_raw_bytes_may_leave_early(model: Path) -> None:
    words = [*PROGRAM, "extract", str(model), "--stdout", "transformer.h.0.attn.bias"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ(), bufsize=0
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate()[1] == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    "words", [("inspect",), ("inspect", "--json"), ("extract", "--stdout", "lm_head.weight")]
)
def test_a_full_disk_behind_standard_output_is_said(model: Path, words: tuple[str, ...]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, *words, model],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            env=environ(),
        )
    assert done.stderr == (
        b"error: standard output: cannot write: No space left on device\n"
        b"hint: free disk space, or write to another file system\n"
    )
    assert done.returncode == 4


def test_raw_bytes_are_not_written_to_a_terminal(model: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "extract", model, "--stdout", "lm_head.weight"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environ(),
    )
    _, err = process.communicate()
    os.close(theirs)
    os.close(ours)
    assert process.returncode == 2
    assert b"raw bytes are not written to a terminal" in err


def test_progress_appears_on_terminals_only(model: Path, tmp_path: Path) -> None:
    result = spawn("convert", model, "-o", tmp_path / "out.npz")
    assert result.err == ""
    assert result.code == 0

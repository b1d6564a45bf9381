"""With --json an error is JSON, too; and what cannot be read is unreadable, not bad usage."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import pytest
import torch

from cgpt_convert.cli import COMMANDS
from tests.helpers.running import environ, run

KEYS = ["kind", "message", "where", "hint", "exit_code"]


def command(name: str) -> click.Command:
    found: click.Command = importlib.import_module(f"cgpt_convert.cli.{name}").command
    return found


def words(name: str, path: Path, out: Path) -> list[Any]:
    """The command's words to do something with the file."""
    more: dict[str, list[Any]] = {
        "convert": ["-o", out / "x.safetensors"],
        "extract": ["-o", out / "raw"],
        "lock": ["-o", out / "x.lock"],
        "verify": [path],
        "diff": [path],
        "generate": ["--ids", "1", "--max-new-tokens", "1"],
        "eval": ["--text", path],
    }
    return [name, path, *more.get(name, [])]


JSON = [name for name in COMMANDS if any("--json" in p.opts for p in command(name).params)]
READING = [name for name in JSON if name not in ("models", "scan")]


def test_most_commands_have_json() -> None:
    assert len(JSON) >= 10


@pytest.mark.parametrize("name", READING)
def test_a_malformed_file_is_an_error_in_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    torch.save({"w": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-600])
    result = run(*words(name, path, tmp_path), "--json")
    assert result.code == 3
    assert list(result.json) == ["error"]
    error = result.json["error"]
    assert list(error) == KEYS
    assert (error["kind"], error["exit_code"]) == ("malformed", 3)
    assert error["where"] == str(path)
    assert error["message"] in result.err
    assert error["hint"] in result.err
    assert run(*words(name, path, tmp_path)).raw == b""


@pytest.mark.parametrize("name", JSON)
def test_bad_usage_is_an_error_in_json(name: str, tmp_path: Path) -> None:
    result = run(*words(name, tmp_path / "none", tmp_path), "--no-such-option", "--json")
    assert result.code == 2
    assert list(result.json["error"]) == KEYS
    assert result.json["error"]["kind"] == "bad request"
    assert "--no-such-option" in result.json["error"]["message"]


def test_json_behind_a_double_dash_is_a_name() -> None:
    result = run("inspect", "--", "--json")
    assert result.code == 2
    assert result.raw == b""


@pytest.mark.parametrize("name", READING)
def test_a_file_without_permission_is_unreadable(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    torch.save({"w": torch.ones(3)}, path)
    real = os.open

    def denied(file: Any, *rest: Any, **more: Any) -> int:
        if os.fspath(file) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(file, *rest, **more)

    with patch.object(os, "open", denied):
        result = run(*words(name, path, tmp_path), "--json")
    assert result.code == 3
    assert result.json["error"]["kind"] == "unreadable"
    assert result.json["error"]["where"] == str(path)


@pytest.mark.parametrize("name", COMMANDS)
def test_click_does_not_check_permissions(name: str) -> None:
    """It would call an unreadable file bad usage."""
    paths = [p.type for p in command(name).params if isinstance(p.type, click.Path)]
    assert not [path for path in paths if path.readable or path.exists]


def test_what_a_target_cannot_hold_is_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"c": torch.ones(2, dtype=torch.complex128), "s": torch.eye(2).to_sparse()}, path)
    out = tmp_path / "o.safetensors"
    for skipped, named in (("c", "s"), ("s", "c")):
        result = run("convert", path, "-o", out, "--exclude", skipped, "--json")
        assert result.code == 3
        assert result.json["error"]["kind"] == "unsupported"
        assert f"--exclude '{named}'" in result.json["error"]["hint"]
    assert not out.exists()


def test_a_lack_of_memory_is_an_error_in_json(tmp_path: Path) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    with patch("cgpt_convert.cli.group.main", exhausted):
        result = run("inspect", tmp_path, "--json")
    assert (result.code, result.json["error"]["kind"]) == (3, "unsupported")
    assert result.err.startswith("error: not enough memory\nhint: ")


def test_a_ctrl_c_while_the_program_is_imported_is_an_error_in_json() -> None:
    script = (
        "import sys, cgpt_convert.cli, cgpt_convert.__main__ as program\n"
        "def interrupted(): raise KeyboardInterrupt\n"
        "cgpt_convert.cli.main = interrupted\n"
        "sys.exit(program.main())"
    )
    words = [sys.executable, "-c", script, "inspect", "--json"]
    done = subprocess.run(words, capture_output=True, check=False, env=environ(), text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    error = json.loads(done.stdout)["error"]
    assert list(error) == KEYS
    assert (error["kind"], error["exit_code"]) == ("interrupted", 130)

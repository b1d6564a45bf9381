"""Running the program: in this process where an exit code is enough, in its own where not."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple
from unittest.mock import patch

from cgpt_convert.cli import main

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "cgpt_convert")


class Result(NamedTuple):
    """What a run left: its exit code and both of its outputs."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        """Standard output, all of it, as JSON that every reader takes."""
        return json.loads(self.out, parse_constant=_no_constant)


def run(*words: object) -> Result:
    """What the program does with `words`. What it does not catch, the test does not either."""
    arguments = ["cgpt-convert", *map(str, words)]
    with TemporaryFile("w+", encoding="utf-8") as out, TemporaryFile("w+", encoding="utf-8") as err:
        redirected = redirect_stdout(out), redirect_stderr(err)
        with _handlers_kept(), redirected[0], redirected[1], patch.object(sys, "argv", arguments):
            code = main()
        out.seek(0)
        err.seek(0)
        return Result(code, bytes(out.buffer.read()), err.read())


def spawn(*words: object, **environment: str) -> Result:
    """The same in a process of its own."""
    done = subprocess.run(
        [*PROGRAM, *map(str, words)],
        capture_output=True,
        check=False,
        env=environ(**environment),
        stdin=subprocess.DEVNULL,
    )
    err = done.stderr.decode()
    assert "Traceback" not in err, err
    return Result(done.returncode, done.stdout, err)


def start(*words: object) -> "subprocess.Popen[bytes]":
    """A process that runs on by itself."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environ(),
        stdin=subprocess.DEVNULL,
    )


def environ(**more: str) -> dict[str, str]:
    """This process's environment, less what changes how text is shown."""
    looks = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM")
    plain = {k: v for k, v in os.environ.items() if k not in looks}
    return {**plain, "PYTHONPATH": str(ROOT), **more}


def partials(folder: Path) -> list[str]:
    """The temporaries that lie in the folder."""
    return sorted(name for name in os.listdir(folder) if name.endswith(".partial"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in the folder and below."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextmanager
def _handlers_kept() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    hook = sys.unraisablehook
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")

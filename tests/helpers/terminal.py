"""Running the program on a terminal of its own."""

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import NamedTuple

from tests.helpers.running import environ


class Shown(NamedTuple):
    """The exit code of a program, and the text on its terminal."""

    code: int
    text: str


def on_terminal(
    *words: object,
    folder: Path,
    columns: int = 80,
    stdout: bool = True,
    longest: float = 120,
    program: tuple[str, ...] = ("-m", "cgpt_convert"),
    **environment: str,
) -> Shown:
    """Run the program with standard error, and unless told otherwise output, on a terminal.

    Output that is not on the terminal is dropped. `program` is what the interpreter runs.
    """
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, words)],
        cwd=folder,
        env=environ(**{"TERM": "xterm", **environment}),
        stdin=theirs,
        stdout=theirs if stdout else subprocess.DEVNULL,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown, end = b"", time.monotonic() + longest
    try:
        while (piece := read_terminal(ours)) != b"":
            shown += piece or b""
            assert time.monotonic() < end, "it hangs"
        return Shown(process.wait(longest), shown.decode().replace("\r\n", "\n"))
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_terminal(terminal: int) -> bytes | None:
    """Return what the terminal shows next: None if nothing yet, empty if nobody has it open."""
    if not select.select([terminal], [], [], 0.01)[0]:
        return None
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux says EIO when the other end is closed
        return b""

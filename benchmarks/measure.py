"""One command in a fresh process: its wall time, user and system CPU, and peak memory."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

# an installed package has its bytecode; where it may not be written, each run would compile anew
_ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


class Run(NamedTuple):
    """What one process took: seconds, and the most memory that it had at once, in bytes.

    Linux counts in what the parent had when it started the process, so a peak as low as the
    harness's own is only an upper bound.
    """

    wall: float
    user: float
    system: float
    peak: int


def run(argv: list[str]) -> Run:
    """Run the command, its output thrown away; SystemExit if it fails."""
    null = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    start = time.perf_counter()
    child = os.posix_spawnp(argv[0], argv, _ENVIRONMENT, file_actions=[null])
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    if status:
        raise SystemExit(f"failed with status {os.waitstatus_to_exitcode(status)}: {argv}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * unit)


def remove(output: Path) -> None:
    """Remove a command's output, and wait until the disk is idle."""
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)
    os.sync()


def warm(path: Path) -> None:
    """Bring the file into the page cache."""
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass

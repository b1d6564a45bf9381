"""One command in a fresh process: its wall time, user and system CPU, and peak memory."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# an installed package has its bytecode; where it may not be written, each run would compile anew
_ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
_MIB = 1 << 20


class Run(NamedTuple):
    """What one process took: seconds, and the most memory that it had at once, in bytes.

    Linux counts in what the parent had when it started the process, so a peak as low as the
    harness's own is only an upper bound.
    """

    wall: float
    user: float
    system: float
    peak: int


def run(argv: list[str], printed: str = os.devnull) -> Run:
    """Run the command, what it prints going to that file; SystemExit if it fails, and why."""
    to = (os.POSIX_SPAWN_OPEN, 1, printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with tempfile.TemporaryFile() as errors:
        actions = [to, (os.POSIX_SPAWN_DUP2, errors.fileno(), 2)]
        start = time.perf_counter()
        child = os.posix_spawnp(argv[0], argv, _ENVIRONMENT, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
        wall = time.perf_counter() - start
        if status:
            errors.seek(0)
            said = errors.read().decode(errors="replace")[-2000:]
            code = os.waitstatus_to_exitcode(status)
            raise SystemExit(f"{said}\nfailed with status {code}: {argv}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * unit)


def remove(output: Path) -> None:
    """Remove a command's output, and wait until the disk is idle."""
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)
    os.sync()


def warm(path: Path) -> float:
    """The share of the file that is in the page cache after all of it was read once."""
    buffer = bytearray(_MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
        starts = range(0, path.stat().st_size, _MIB)
        return sum(_cached(file.fileno(), at) for at in starts) / max(len(starts), 1)


def _cached(descriptor: int, offset: int) -> bool:
    """Is the byte in memory?"""
    if not hasattr(os, "RWF_NOWAIT"):
        return True  # not Linux: nobody can tell
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False

"""Ctrl-C on a terminal, where progress bars are drawn: every command ends soon, with code 130.

`ROUNDS=100 pytest tests/cli/test_ctrl_c.py` interrupts each of them so many times. The process is
kept on one core, so that its threads are stopped in the middle of what they do.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import cgpt_convert
from tests.helpers.running import environ, partials, run
from tests.helpers.terminal import read_terminal

ROUNDS = int(os.environ.get("ROUNDS", "3"))
LONGEST = 20.0  # seconds from the Ctrl-C to the end; it takes 0.2
DEMO = Path(cgpt_convert.__file__).parent / "demo"

COMMANDS = {
    "convert": ("convert", "m.bin", "-o", "out.safetensors"),
    "convert, sharded": ("convert", "m.bin", "-o", "s.safetensors", "--max-shard-size", "20MB"),
    "convert, verified": ("convert", "m.bin", "-o", "v.npz", "--verify"),
    "extract": ("extract", "m.bin", "-o", "out"),
    "digest": ("digest", "m.bin"),
    "lock": ("lock", "m.bin", "-o", "m.lock"),
    "verify": ("verify", "m.bin", "m.safetensors"),
    "diff": ("diff", "m.bin", "m.safetensors"),
    "inspect --check": ("inspect", "m.bin", "--check"),
    "inspect --stats": ("inspect", "m.bin", "--stats"),
    "verify --logits": ("verify", DEMO, DEMO, "--logits"),
    "eval": ("eval", DEMO, "--text", DEMO / "held-out.txt"),
    "scan": ("scan", "m.bin", "m.safetensors", DEMO),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where m.bin is, 400 MB that are to be transposed, and the same as safetensors.

    A bar is drawn after half a second.
    """
    folder = tmp_path_factory.mktemp("terminal")
    torch.save({f"{i}.weight": torch.randn(1024, 1024).T for i in range(100)}, folder / "m.bin")
    assert run("convert", folder / "m.bin", "-o", folder / "m.safetensors").code == 0
    return folder


class Ended(NamedTuple):
    code: int
    shown: str
    seconds: float  # after the Ctrl-C


def interrupted(words: tuple[object, ...], folder: Path, delay: float) -> Ended:
    """The command on a terminal of its own and on one core, with a Ctrl-C after `delay` seconds."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # else no bar fits
    process = subprocess.Popen(
        [sys.executable, "-m", "cgpt_convert", *map(str, words)],
        cwd=folder,
        env=environ(TERM="xterm"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
    shown, begun, sent = b"", time.monotonic(), 0.0
    try:
        while (piece := read_terminal(ours)) != b"":
            shown += piece or b""
            now = time.monotonic()
            if not sent and now - begun > delay:
                process.send_signal(signal.SIGINT)
                sent = now
            assert not sent or now - sent < LONGEST, "it hangs"
        return Ended(process.wait(LONGEST), shown.decode(), time.monotonic() - sent if sent else 0)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_ctrl_c_ends_every_command_soon(name: str, folder: Path) -> None:
    words = COMMANDS[name]
    words += () if name.startswith("inspect") else ("--jobs", "4")
    words += ("--overwrite",) if name.startswith(("convert", "extract", "lock")) else ()
    chance = random.Random(name)
    for _ in range(ROUNDS):
        ended = interrupted(words, folder, chance.uniform(0.3, 1.5))
        # it may be done before; CPython dies of the signal if that comes as the interpreter ends
        assert ended.code in (0, 1, 130, -signal.SIGINT), ended.shown
        assert "Traceback" not in ended.shown
    assert partials(folder) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen")
def test_a_bar_is_drawn_on_a_terminal(folder: Path) -> None:
    """Else the tests above would be of nothing."""
    words = ("convert", "m.bin", "-o", "b.npz", "--dtype", "float16", "--jobs", "4")
    shown = interrupted(words, folder, 60).shown
    assert "writing:" in shown
    assert "%|" in shown


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen")
def test_a_ctrl_c_does_not_wait_for_the_file_being_scanned(tmp_path: Path) -> None:
    """Each of these takes many seconds, in a thread of its own."""
    for name in ("a.pkl", "b.pkl", "c.pkl"):
        with (tmp_path / name).open("wb") as file:
            pickle.dump(list(map(str, range(3_000_000))), file, 4)
    chance = random.Random(5)
    for _ in range(ROUNDS):
        ended = interrupted(("scan", ".", "--jobs", "3"), tmp_path, chance.uniform(0.5, 1.5))
        assert ended.code == 130, ended.shown
        assert ended.seconds < 5
        assert "Traceback" not in ended.shown

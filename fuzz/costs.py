"""`python -m fuzz.costs FOLDER [WORD ...]`: what each flood costs each command, dearest first.

The floods are written to FOLDER unless they are there; the WORDs are of the names of those that are
measured. `--part 2/5` takes a fifth of them.

Every command runs by itself: its time is that of the whole process, by the clock, as it would be at
the speed that `pace` refers to, its memory the most that it held. Exit code 1 if one takes more
than 1 s or 256 MB, ends by an exception or with another exit code than 0 to 3. Run it on a machine
that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from fuzz.pace import slowness

MiB = 1 << 20
MOST_SECONDS, MOST_BYTES = 1.0, 256_000_000
AGAIN = 0.7  # seconds from which a time is measured again, and the least of three is taken

COMMANDS = {
    "inspect": ("inspect", "{}"),
    "inspect --json": ("inspect", "--json", "{}"),
    "inspect --tree": ("inspect", "--tree", "{}"),
    "scan": ("scan", "{}"),
    "scan --json": ("scan", "--json", "{}"),
    "digest": ("digest", "{}"),
    "convert --dry-run": ("convert", "{}", "-o", "x.npz", "--dry-run"),
    "convert --salvage": ("convert", "{}", "-o", "x.npz", "--dry-run", "--salvage"),
}
LOCKED: dict[str, tuple[str, ...]] = {
    "verify --lock": ("verify", "model.safetensors", "--lock", "lock.json")
}
_CODES = (0, 1, 2, 3)


class Cost(NamedTuple):
    """What a command took of a flood."""

    flood: str
    command: str
    code: int
    seconds: float
    nbytes: int  # of memory, at most
    out: int  # bytes of its output
    problem: str

    def __str__(self) -> str:
        size = f"{self.nbytes / 1e6:4.0f} MB {self.out / 1e6:6.2f} MB out"
        line = f"{self.seconds:5.2f} s {size}  exit {self.code}  {self.command}: {self.flood}"
        return line + f"  <- {self.problem}" * bool(self.problem)


def measure(folder: Path, name: str, words: tuple[str, ...], times: int) -> Cost:
    """What the command of these words costs, run in the flood's folder."""
    shortest, most, out, code, err = 1e9, 0, 0, 0, ""
    while times:
        done = _once(folder, words)
        shortest, most = min(shortest, done[0]), max(most, done[1])
        code, out, err = done[2:]
        times = times - 1 if shortest > AGAIN else 0
    problems = [f"{shortest:.2f} s"] * (shortest > MOST_SECONDS)
    problems += [f"{most / 1e6:.0f} MB"] * (most > MOST_BYTES)
    problems += [f"exit code {code}"] * (code not in _CODES)
    problems += ["an exception"] * ("Traceback" in err)
    return Cost(folder.name, name, code, shortest, most, out, ", ".join(problems))


def _once(folder: Path, words: tuple[str, ...]) -> tuple[float, int, int, int, str]:
    """Seconds, bytes of memory, exit code, bytes of output, and the start of standard error."""
    out, err = folder.parent / ".out", folder.parent / ".err"
    before = slowness()
    started = time.perf_counter()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        program = [sys.executable, "-m", "cgpt_convert", *words]
        done = subprocess.Popen(program, cwd=folder, stdout=stdout, stderr=stderr)
        _, status, used = os.wait4(done.pid, 0)
    seconds = (time.perf_counter() - started) * 2 / (before + slowness())
    done.returncode = os.waitstatus_to_exitcode(status)
    told = err.read_bytes()[:5000].decode("utf-8", "replace")
    # ru_maxrss begins at what this process, from which it forked, had
    return seconds, used.ru_maxrss << 10, done.returncode, out.stat().st_size, told


def _commands(folder: Path) -> dict[str, tuple[str, ...]]:
    files = sorted(os.listdir(folder))
    if "lock.json" in files:
        return LOCKED
    single = files[0] if len(files) == 1 else "."
    index = [file for file in files if file.endswith(".index.json")]
    given = index[0] if index else single
    return {
        name: tuple(word.replace("{}", given) for word in words) for name, words in COMMANDS.items()
    }


def _write(folder: Path) -> None:
    """The floods, by a process of its own: torch, which it imports, takes memory."""
    script = "import sys; from fuzz.floods import write; write(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True)


def main() -> int:
    """Exit code 1 if anything costs too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--command", choices=COMMANDS)
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    if not given.folder.exists():
        _write(given.folder)
    part, parts = map(int, given.part.split("/"))
    names = sorted(os.listdir(given.folder))
    names = [name for name in names if not name.startswith(".")]
    names = [name for name in names if not given.words or any(w in name for w in given.words)]
    costs = []
    for name in names[part - 1 :: parts]:
        for command, words in _commands(given.folder / name).items():
            if given.command in (None, command):
                costs.append(measure(given.folder / name, command, words, given.times))
    costs.sort(key=lambda cost: (bool(cost.problem), cost.seconds), reverse=True)
    over = sum(bool(cost.problem) for cost in costs)
    sys.stdout.write("\n".join(map(str, costs)) + f"\n{len(costs)} runs, {over} over\n")
    return 1 if any(cost.problem for cost in costs) else 0


if __name__ == "__main__":
    sys.exit(main())

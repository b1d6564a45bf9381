"""`python -m fuzz.differential --seconds N --seed S --finds FOLDER`: the scanner beside loaders.

Makes random files in all containers and runs `scan` on each. Those that `scan` passes with exit
code 0 are given to loaders in a child process, which records what they import, call and change
(`fuzz/loaders.py`, `fuzz/recorder.py`). A file that `scan` passes and that makes a loader do more
than read weights is a find: it is made smaller and written to FOLDER with a description. So is a
file on which `scan` raises an exception or gives no answer. Every fifth file is one that a program
would write (`fuzz/everyday.py`); there, an alarm is a find. Exit code 1 if there is a find.

The same seed makes the same files in the same order. `--again NUMBER` repeats one of them,
`--file PATH` tries a file instead.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import os
import re
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from fuzz.everyday import everyday
from fuzz.sandbox import Child, Outcome
from fuzz.wrapping import generated

NAMES = ("x", "x.pkl", "x.pt", "x.bin", "x.joblib", "x.npz", "x.safetensors", "x.pth")
_TRIES = 250  # executions that making a find smaller may take
_EACH = 3  # finds of one kind that are made smaller and written
_SHOWN = 64 << 10  # bytes that are still made smaller


def made(seed: int, number: int) -> tuple[bytes, str]:
    """Return the bytes and the name of a file of that number."""
    dice = Random(f"{seed}/{number}")
    return generated(dice), dice.choice(NAMES)


_EVERYDAY = 5


def written(seed: int, number: int) -> tuple[bytes, str]:
    """Return the bytes and the name of a harmless file of that number."""
    return everyday(Random(f"everyday {seed}/{number}"))


def smaller(data: bytes, holds: Callable[[bytes], bool], tries: int = _TRIES) -> bytes:
    """Return a shorter input for which `holds` is still true."""
    size = max(1, len(data) // 2)
    while size and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            shorter = data[:at] + data[at + size :]
            tries -= 1
            if shorter and holds(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data


class Run:
    """Many inputs one after another, and what was found."""

    def __init__(self, finds: Path | None) -> None:
        self.finds = finds
        self.child = Child()
        self.codes: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.everyday = self.alarms = 0

    def once(self, data: bytes, name: str, origin: str) -> Outcome:
        """Try one input; write it down if it is a find of a kind that was not seen yet."""
        outcome = self.child.run(data, name)
        self.codes[outcome.code] += 1
        kind = kind_of(outcome)
        if kind and self.kinds[kind] < _EACH:
            kind = kind_of(self._confirmed(data, name))
            if kind:
                self._write(data, name, origin, kind)
        if kind:
            self.kinds[kind] += 1
        return outcome

    def harmless(self, data: bytes, name: str, origin: str) -> None:
        """Try a file that must pass; write it down if it does not."""
        outcome = self.child.run(data, name)
        self.alarms += outcome.code != 0
        self.everyday += 1
        if outcome.code and self.alarms <= _EACH:
            self._save(data, described(data, name, f"False alarm: {origin}", outcome))

    def close(self) -> None:
        """End the child."""
        self.child.close()

    def _confirmed(self, data: bytes, name: str) -> Outcome:
        """The outcome in a child that has seen nothing else."""
        self.child.close()
        outcome = self.child.run(data, name)
        self.child.close()
        return outcome

    def _write(self, data: bytes, name: str, origin: str, kind: str) -> None:
        if len(data) <= _SHOWN:
            data = smaller(data, lambda less: kind_of(self.child.run(less, name)) == kind)
        outcome = self._confirmed(data, name)
        self._save(data, described(data, name, origin, outcome))

    def _save(self, data: bytes, text: str) -> None:
        digest = hashlib.sha256(data).hexdigest()[:12]
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        if self.finds:
            self.finds.mkdir(parents=True, exist_ok=True)
            (self.finds / f"fuzz-{digest}.bin").write_bytes(data)
            (self.finds / f"fuzz-{digest}.md").write_text(text)

    def summary(self, seconds: float) -> str:
        """Return the counts as a line."""
        total = sum(self.codes.values())
        codes = ", ".join(f"{count:,} exit {code}" for code, count in sorted(self.codes.items()))
        found = f"{sum(self.kinds.values()):,} finds of {len(self.kinds)} kinds"
        passed = f"{self.alarms:,} alarms on {self.everyday:,} harmless files"
        return f"{total:,} files in {seconds:.0f} s ({codes}); {found}; {passed}\n"


def kind_of(outcome: Outcome) -> str:
    """Return a label that is equal for finds which are likely to be the same fault."""
    if not outcome.is_find:
        return ""
    if outcome.code:
        return f"scan: {outcome.ended or outcome.report[:40]}"
    *_, last = outcome.events[0].split(" > ")
    loader, _, event = last.partition(": ")
    first, *words = event.split(" ")
    what = first if first == "find_class" else " ".join([first, *words[:2]])
    what = re.sub(r"0x[0-9a-f]+", "", what)
    judged = re.sub(r"^\S+ +\S+: |[\d,]+|\n.*", "", outcome.report, flags=re.DOTALL)
    return f"{loader}: {what} (scan: {judged.strip()})"


def described(data: bytes, name: str, origin: str, outcome: Outcome) -> str:
    """Return a find as a page of Markdown."""
    events = "\n".join(f"- {event}" for event in outcome.events) or "- (none)"
    report = outcome.report.strip() or outcome.ended
    return (
        f"# {kind_of(outcome) or 'not repeated'}\n\n{origin}; as a file called `{name}`, "
        f"{len(data):,} bytes.\n\n`scan` exits with {outcome.code}:\n\n```\n{report}\n```\n\n"
        f"Loaders:\n\n{events}\n\n```\n{data[:1500]!r}\n```\n\nHex: `{data[:1500].hex()}`\n"
    )


def main() -> int:
    """Return exit code 1 if there are finds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--files", type=int, default=sys.maxsize, help="at most this many files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--finds", type=Path)
    parser.add_argument("--again", type=int, help="try only the file of this number")
    parser.add_argument("--file", type=Path, action="append", help="try this file")
    given = parser.parse_args()
    warm_up()
    run = Run(given.finds)
    started = time.perf_counter()
    if given.file:
        for path in given.file:
            outcome = run.once(path.read_bytes(), path.name, str(path))
            sys.stdout.write(f"{path.name}: exit {outcome.code} {outcome.events}\n")
    elif given.again is not None:
        data, name = made(given.seed, given.again)
        outcome = run.once(data, name, f"seed {given.seed}, number {given.again}")
        sys.stdout.write(described(data, name, "again", outcome))
    else:
        number = given.first
        last = given.first + given.files
        while number < last and time.perf_counter() - started < given.seconds:
            data, name = made(given.seed, number)
            run.once(data, name, f"seed {given.seed}, number {number}")
            if number % _EVERYDAY == 0:
                run.harmless(*written(given.seed, number), f"seed {given.seed}, number {number}")
            number += 1
    run.close()
    sys.stdout.write(run.summary(time.perf_counter() - started))
    return 1 if run.kinds or run.alarms else 0


def warm_up() -> None:
    """Import what loaders import late, so that a child has it already, and end threads."""
    torch.set_num_threads(1)
    logging.disable()  # torch.export logs each file that it does not take
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from fuzz import warming

    warming.warm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of whoever used this process before
        gc.collect()
    gc.freeze()


if __name__ == "__main__":
    sys.exit(main())

"""`python -m fuzz.readers FOLDER [WORD ...]`: what each flood costs each reader, dearest first.

As `fuzz.costs`, which makes the FOLDER, but of the fuzz targets instead of whole commands: every
reader looks at the flood in a process that has imported all. Exit code 1 if one takes more than
1 s or 256 MB, or raises what it must not. The least of three times counts where it matters, each
as it would be at the speed that `pace` refers to; as it was, it stands in brackets.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

from fuzz import targets
from fuzz.costs import AGAIN, MOST_BYTES, MOST_SECONDS
from fuzz.pace import slowness

_READERS = {  # of floods of that kind; of others, all
    "archive": ("archive", "cut-archive", "scan"),
    "cut": ("archive", "cut-archive", "scan"),
    "bare": ("unpickler", "tracer", "scan"),
    "legacy": ("legacy", "cut-legacy", "scan"),
}


class Cost(NamedTuple):
    """What a reader took of a flood."""

    seconds: float
    taken: float  # seconds that it took
    nbytes: int  # of memory, at most, those of Python and NumPy included
    problem: str

    @property
    def is_over(self) -> bool:
        """Does it break what is promised?"""
        return bool(self.problem) or self.seconds > MOST_SECONDS or self.nbytes > MOST_BYTES


def measure(reader: str, data: bytes) -> Cost:
    """What the reader takes of a file with these bytes."""
    costs = [_once(reader, data)]
    if costs[0].seconds > AGAIN:
        costs += [_once(reader, data), _once(reader, data)]
    return min(costs)


def _once(reader: str, data: bytes) -> Cost:
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.write(into, json.dumps(_inside(reader, data)).encode())
        os._exit(0)
    os.close(into)
    with open(out, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return Cost(*json.loads(told)) if told else Cost(0, 0, 0, f"ended with {status}")


def _inside(reader: str, data: bytes) -> Cost:
    gc.disable()  # as in the program
    problem = ""
    before = slowness()
    started = time.perf_counter()
    try:
        targets.run(reader, data)
    except BaseException as error:  # noqa: BLE001  whatever it is, it is a find
        problem = repr(error)[:200]
    taken = time.perf_counter() - started
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Cost(taken * 2 / (before + slowness()), taken, most << 10, problem)


def _line(cost: Cost, reader: str, name: str) -> str:
    told = f"  <- {cost.problem}" * bool(cost.problem)
    took = f"{cost.seconds:5.2f} s ({cost.taken:.2f}) {cost.nbytes / 1e6:4.0f} MB"
    return f"{took}  {reader}: {name}{told}\n"


def main() -> int:
    """Exit code 1 if anything costs too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    for reader in targets.TARGETS:  # imports what it needs
        targets.run(reader, b"\x80\2}.")
    rows = []
    for place in sorted(given.folder.iterdir()):
        files = [file for file in place.iterdir() if file.is_file()] if place.is_dir() else []
        named = not given.words or any(word in place.name for word in given.words)
        if len(files) != 1 or not named:
            continue
        data = files[0].read_bytes()
        readers = _READERS.get(place.name.partition(",")[0], tuple(targets.TARGETS))
        for reader in readers:
            rows.append((measure(reader, data), reader, place.name))
            sys.stderr.write(_line(*rows[-1]))
    rows.sort(reverse=True)
    sys.stdout.writelines(_line(*row) for row in rows)
    over = sum(cost.is_over for cost, _, _ in rows)
    sys.stdout.write(f"{len(rows)} readings, {over} over\n")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())

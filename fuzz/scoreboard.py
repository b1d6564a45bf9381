"""`python -m fuzz.scoreboard VENV PAGE`: every class of hostile files, by this scanner and others.

VENV is a virtual environment with picklescan, modelscan and fickling; PAGE is written. Each tool is
run as its documentation says, on one file at a time, and judged by its exit code alone. With
`--keep`, the verdicts of the others are taken from PAGE where it has them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from fuzz.classes import Hostile, classes
from fuzz.differential import warm_up, written
from fuzz.sandbox import Child

OURS = "cgpt-convert"
REPORTED, NOT_SCANNED, PASSED = "reported", "not scanned", "**passed**"
HARMLESS = 40  # files
MOST = 100_000  # bytes of a file that the loaders are given
_SECONDS = 120


class Tool(NamedTuple):
    """Another scanner: how it is called, and the exit code that says there is nothing."""

    name: str
    words: tuple[str, ...]


TOOLS = (
    Tool("picklescan", ("--path",)),
    Tool("modelscan", ("--path",)),
    Tool("fickling", ("--check-safety", "--json-output", "/dev/null")),
)


def judged(command: list[str], path: Path) -> str:
    """Return the verdict of a program that exits with 0 on a clean file, 1 on an unsafe one."""
    try:
        done = subprocess.run(
            [*command, path], capture_output=True, timeout=_SECONDS, cwd=path.parent, check=False
        )
    except subprocess.TimeoutExpired:
        return NOT_SCANNED
    return {0: PASSED, 1: REPORTED}.get(done.returncode, NOT_SCANNED)


class Board:
    """What judges a file: this scanner, the others, and the loaders."""

    def __init__(self, venv: Path, folder: Path, kept: dict[str, list[str]]) -> None:
        self.venv, self.folder, self.kept = venv, folder, kept
        self.child = Child(trusting=True)

    def row(self, hostile: Hostile) -> list[str]:
        """Return the cells for a class: its name, whether a loader acts, and each verdict."""
        data = hostile.make()
        acts = len(data) > MOST or self.child.run(data, hostile.file).events
        verdicts = self.verdicts(data, hostile.file, self.kept.get(hostile.title, []))
        return [hostile.title, "yes" if acts else "", *verdicts]

    def verdicts(self, data: bytes, name: str, kept: list[str]) -> list[str]:
        """Return each scanner's verdict, ours first; those of the others may be known already."""
        path = self.folder / name
        path.write_bytes(data)
        ours = judged([sys.executable, "-m", "cgpt_convert", "scan"], path)
        others = kept or [
            judged([str(self.venv / "bin" / tool.name), *tool.words], path) for tool in TOOLS
        ]
        path.unlink()
        return [ours, *others]


def listed(page: Path) -> dict[str, list[str]]:
    """Return the other scanners' verdicts in a page, by the name of the class."""
    if not page.exists():
        return {}
    lines = page.read_text(encoding="utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {line[0]: line[-len(TOOLS) :] for line in cells if len(line) > len(TOOLS) + 1}


def version(venv: Path, name: str) -> str:
    """Return a tool's version, as its metadata has it."""
    script = f"import importlib.metadata as m; print(m.version({name!r}))"
    told = subprocess.run(
        [venv / "bin" / "python", "-c", script], capture_output=True, text=True, check=True
    )
    return told.stdout.strip()


def _totals(names: list[str], rows: list[list[str]], first: int) -> list[str]:
    verdicts = (REPORTED, NOT_SCANNED, PASSED)
    counts = [
        [str(sum(cells[at] == verdict for cells in rows)) for verdict in verdicts]
        for at in range(first, first + len(names))
    ]
    return [f"| {name} | {' | '.join(line)} |" for name, line in zip(names, counts, strict=True)]


def page(rows: dict[str, list[list[str]]], harmless: list[list[str]], versions: list[str]) -> str:
    """Return the page."""
    every = [cells for group in rows.values() for cells in group]
    names = [f"{OURS} scan", *versions]
    out = [
        _HEAD.format(count=len(every), acts=sum(cells[1] == "yes" for cells in every)),
        "| scanner | reported | not scanned | passed |\n|---|---|---|---|",
        *_totals(names, every, 2),
        _HARMLESS.format(count=HARMLESS),
        "| scanner | reported | not scanned | passed |\n|---|---|---|---|",
        *_totals(names, harmless, 0),
    ]
    for group, lines in rows.items():
        out += [f"\n## {group}\n", "| class | seen | " + " | ".join(names) + " |"]
        out += ["|---" * (2 + len(names)) + "|"]
        out += [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join(out) + "\n"


_HARMLESS = """
A scanner that reports everything would pass no hostile file. This is what the same scanners say of
{count} files as programs write them every day (`fuzz/everyday.py`): tensors saved by torch, pickles
of plain values, arrays, safetensors, archives of those. Here only *passed* is right.
"""

_HEAD = """\
# Scoreboard

{count} classes of files that make a loader run code which the file chooses, and what scanners say
of one file of each class. `fuzz/classes.py` builds them; what they would run is harmless. The test
suite builds every class and requires that `cgpt-convert scan` does not exit with 0.

*Reported*: exit code 1, the file is unsafe. *Not scanned*: another exit code, such as an error, an
unsupported file or (for `cgpt-convert scan`) exit code 3. *Passed*: exit code 0. *Seen* is "yes"
for the {acts} classes of which the [test harness](security.md#the-scanner-and-loaders) saw a
loader act; the others need a loader that it does not install (Keras, transformers, lz4, zstd, a
newer Python ...) or are files that nobody can look into.

The classes were collected by people who looked for faults in this scanner, and from published
advisories about others. The page does not say how the others do on files as they occur. Generate it
with:

    python3 -m venv TOOLS
    TOOLS/bin/pip install picklescan modelscan fickling typing_extensions
    pip install -e '.[test]'
    python -m fuzz.scoreboard TOOLS docs/explanation/scoreboard.md
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    warm_up()
    rows: dict[str, list[list[str]]] = defaultdict(list)
    kept = listed(given.page) if given.keep else {}
    with tempfile.TemporaryDirectory() as folder:
        board = Board(given.venv.resolve(), Path(folder), kept)
        for hostile in classes():
            rows[hostile.group].append(board.row(hostile))
        harmless = [board.verdicts(*written(0, number), []) for number in range(HARMLESS)]
        board.child.close()
    versions = [f"{tool.name} {version(board.venv, tool.name)}" for tool in TOOLS]
    given.page.write_text(page(rows, harmless, versions), encoding="utf-8")


if __name__ == "__main__":
    main()

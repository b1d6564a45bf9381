"""The benchmarks still run, on models that take no time, and judge what they measure rightly."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import model, page, plots, summary, synthetic, tables
from benchmarks.checkpoints import LAYOUTS
from benchmarks.groups import SHARDS, TENSORS, groups
from benchmarks.measure import Run, run, warm
from benchmarks.promises import OF_CHECKPOINTS, OF_THE_REST, WEIGHTS, verdict
from benchmarks.results import Key, Results, Row, Session, load
from benchmarks.scaling import growths
from benchmarks.tasks import COPY, PROOF, START_UP
from cgpt_convert import open_checkpoint
from tests.helpers import vendor

ROOT = Path(__file__).parents[2]
MB = 10**6
SIZES = {"111M": 486 * MB, "1.3B": 5_400 * MB, "2.7B": 10_900 * MB}
# one command of each program, and what ours takes no time for
ONLY = (
    "/start-up/*",
    "small/generation/prefill*transformers",
    "small/generation/decode*llama.cpp",
    "small/generation/decode",
    "small/generation/generate*1*",
    "small/cs/convert*",
    "small/cs/*q8_0*",
    "small/cs/sha*",
    "small/cs/unzip",
    "small/cs/*mmap*",
    "small/hf/npz*",
    "small/hf/extract",
    "*/tensors/convert to*",
    "*/tensors/verify",
    "*/shards/scan",
)


def measured(folder: Path, *options: str) -> str:
    """What the command line prints."""
    argv = [sys.executable, "-m", "benchmarks", "--results", str(folder / "results.json")]
    argv += ["--output", str(folder / "page.md"), *options]
    return subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything was measured once, with checkpoints that this process made."""
    made = tmp_path_factory.mktemp("benchmarks")
    for layout in LAYOUTS:
        home = made / "checkpoints" / f"small-{layout}"
        vendor.write(vendor.SIZES["small"], home, layout)
        model.write("small", layout, home)
    for tensors, shards in ((10, 1), (100, 1), (20, 1), (200, 10)):
        name = f"{tensors}-tensors-{shards}-shards"
        synthetic.write(tensors, shards, made / "checkpoints" / name)
    options = ["--dir", str(made / "checkpoints"), "--sizes", "small", "--tensors", "200"]
    measured(made, *options, "--runs", "1", *(word for glob in ONLY for word in ("--only", glob)))
    return made


def section(text: str, heading: str) -> str:
    """What follows the heading that has those words."""
    (found,) = (part for part in text.split("\n## ") if heading in part.splitlines()[0])
    return found


def lines(text: str) -> dict[str, list[str]]:
    """The table's rows by their first cell."""
    found = [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in found if set(first) != {"-"}}


def test_every_command_that_was_asked_for_has_a_row(folder: Path) -> None:
    text = (folder / "page.md").read_text()
    names = measured(folder, "--sizes", "small", "--tensors", "200", "--list").splitlines()
    rows = [str(key) for key in load(folder / "results.json").rows]
    assert set(rows) <= set(names)
    for heading in ("(small), Conv1D", "(small), all", "(small), running"):
        table = lines(section(text, heading))
        del table["command"]
        assert table
        for seconds, runs, ratio, *_, peak, date in table.values():
            assert re.fullmatch(r"\d+\.\d{3} \(\d+\.\d{3}\.\.\d+\.\d{3}\)", seconds)
            assert int(runs) >= 1
            assert not ratio or float(ratio) > 0
            assert int(peak.removesuffix(" MB")) > 1
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)


def test_start_up_is_measured_without_copies(folder: Path) -> None:
    table = lines(section((folder / "page.md").read_text(), "Start-up"))
    assert list(table)[1:] == [task.name for task in START_UP]
    assert {row[2] for row in list(table.values())[1:]} == {""}


def test_the_page_names_the_commands_but_no_folder_of_this_machine(folder: Path) -> None:
    text = (folder / "page.md").read_text()
    assert "\npython -m cgpt_convert convert SOURCE -o OUTPUT --to npz --no-proof\n" in text
    assert not any(word in text for word in (str(ROOT), sys.executable, str(folder)))


def test_all_but_checkpoints_is_removed(folder: Path) -> None:
    found = {path.name for path in (folder / "checkpoints").iterdir()}
    converted = {f"{name}.safetensors" for name in found if name.endswith("shards")}
    assert {name for name in found if not name.startswith("small")} - converted == {
        name.removesuffix(".safetensors") for name in converted
    }


def test_promises_about_other_sizes_are_not_judged(folder: Path) -> None:
    text = section((folder / "page.md").read_text(), "Promises")
    assert {cell for row in lines(text).values() for cell in row if "111M" in cell} == set()
    assert any("--help" in first for first in lines(text))


def test_with_nothing_missing_all_is_written_alike(folder: Path) -> None:
    written = {path: path.read_bytes() for path in folder.glob("*.*")}
    assert {path.suffix for path in written} == {".svg", ".md", ".json"}
    options = ["--dir", str(folder / "checkpoints"), "--sizes", "small", "--missing"]
    measured(folder, *options, "--only", "/start-up/*", "--tensors", "0")
    assert written == {path: path.read_bytes() for path in folder.glob("*.*")}


def test_a_new_row_takes_the_place_of_an_old_one_and_others_stay(folder: Path) -> None:
    before = load(folder / "results.json").rows
    options = ["--dir", str(folder / "checkpoints"), "--sizes", "small", "--only", "*/python"]
    measured(folder, *options, "--runs", "2", "--tensors", "0")
    after = load(folder / "results.json").rows
    assert [str(key) for key in after if after[key] != before[key]] == ["/start-up/python"]
    assert list(after) == list(before)


def test_the_projects_pages_are_made_from_its_results() -> None:
    home = ROOT / "docs" / "explanation"
    results = load(home / "measurements.json")
    names = {name: f"measurements-{name}.svg" for name in ("ratios", "scaling")}
    command = "python -m benchmarks --render"
    assert page.markdown(results, names) == (home / "measurements.md").read_text(), command
    made = summary.markdown(results, "measurements.md")
    assert made == (home / "performance.md").read_text(), command
    for name in names.values():
        assert (home / name).stat().st_size < 60_000


def test_the_summary_has_the_figures_of_the_measurements() -> None:
    home = ROOT / "docs" / "explanation"
    cells = lines((home / "performance.md").read_text())
    whole = (home / "measurements.md").read_text()
    table = lines(
        section(whole, "0.5 GB (111M), Conv1D weights as transposed views, the head tied, e")
    )
    for name, shown in (
        ("inspect", "`inspect`"),
        ("convert to safetensors", "`convert` to safetensors"),
    ):
        assert float(table[name][0].split()[0]) == pytest.approx(
            float(cells[shown][0].removesuffix(" s")), abs=0.01
        )


def test_a_process_is_measured_by_itself() -> None:
    code = "import time; data = b'x' * (200 << 20); time.sleep(0.2)"
    found = run([sys.executable, "-c", code])
    assert found.wall >= 0.2
    assert found.peak >= 200 << 20


def test_a_command_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="status 3"):
        run([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_file_is_in_the_page_cache_after_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 << 20))
    assert warm(path) == 1


def test_a_synthetic_checkpoint_is_one_to_torch_and_takes_no_disk(tmp_path: Path) -> None:
    synthetic.write(7, 2, tmp_path / "shards")
    first, second = sorted((tmp_path / "shards").glob("*.bin"))
    for path, number in ((first, 3), (second, 4)):
        state = torch.load(path, weights_only=True, mmap=True)
        assert [tensor.numel() for tensor in state.values()] == [256] * number + [1 << 28]
        assert not any(tensor[:256].any() for tensor in state.values())
        assert path.stat().st_blocks * 512 < MB
    assert len(open_checkpoint(tmp_path / "shards")) == 9


def row(key: Key, wall: float, peak: int, copy: float) -> Row:
    """Three such runs."""
    nbytes = SIZES.get(key.size, 0)
    return Row(key, nbytes, 1.0, 0, [Run(wall, wall, 0, peak)] * 3, [Run(copy, 0, copy, 0)] * 3)


def everything(wall: float, peak: int, growth: float = 1.0, proof: float = 1.0) -> Results:
    """All rows there are: ours take so long and so much, others 6 s and 1500 MB, `cp` 1 s."""
    rows = {}
    for group in groups(list(SIZES), max(TENSORS)):
        for task in group.tasks:
            for file_system in ("ext4", "tmpfs") if task.writes else ("ext4",):
                key = Key(group.size, group.kind, task.name, file_system)
                much = int(group.size) ** growth if group.size.isdigit() else 1
                ours = "cgpt_convert" in task.argv
                seconds = wall * much if ours else 6.0
                seconds *= proof if task == PROOF else 1
                rows[key] = row(key, seconds, int(peak * much) if ours else 1500 * MB, 1.0)
    return Results([Session("2026-01-02", "a machine", 0.0, 14 * MB)], rows)


def verdicts(results: Results) -> set[bool]:
    """Whether the promises were kept, of all sizes."""
    promises = (*OF_CHECKPOINTS, *OF_THE_REST)
    sizes = [(size, memory) for size in ("", *SIZES) for memory in (False, True)]
    found = [
        verdict(each, results, size, memory=memory) for each in promises for size, memory in sizes
    ]
    for promise in promises:  # none speaks of what is not measured
        assert any(verdict(promise, results, size) for size in ("", *SIZES)), promise.text
    return {each.kept for each in found if each}


def test_promises_are_kept_by_the_quick_and_lean() -> None:
    assert verdicts(everything(0.05, 20 * MB)) == {True}


def test_promises_are_broken_by_the_slow_and_fat() -> None:
    assert verdicts(everything(20.0, 8_000 * MB, proof=1.4)) == {False}


def test_a_second_and_a_half_breaks_what_it_should() -> None:
    results = everything(1.45, 20 * MB)
    broken = {
        each.text
        for each in OF_CHECKPOINTS
        if (found := verdict(each, results, "1.3B")) and not found.kept
    }
    assert broken == {
        "convert --no-proof, contiguous: at most 1.15 x `cp`",
        "npz, --no-proof, contiguous: at most 1.15 x `cp`",
        "extract, contiguous: at most 1.15 x `cp`",
        "convert --no-proof, contiguous: at most 1.4 x `cp`",
        "inspect, contiguous: at most 0.15 s",
        "inspect, transposed: at most 0.15 s",
    }


def test_runs_of_two_sessions_are_compared_by_their_medians() -> None:
    key = Key("111M", "hf", COPY.name, "ext4")
    ours, theirs = row(key, 2.0, 0, 1.0), row(key, 1.0, 0, 1.0)
    assert ours.times(theirs) == 2
    assert ours.times(theirs._replace(session=1, runs=theirs.runs[:1])) == 2


@pytest.mark.parametrize(("growth", "linear"), [(0.0, True), (1.0, True), (1.3, False), (2, False)])
def test_a_slope_tells_what_is_linear(growth: float, linear: bool) -> None:
    results = everything(0.01, MB, growth)
    for noun, count in (("tensors", TENSORS), ("shards", SHARDS)):
        found = growths(results, noun)
        assert {each.linear for each in found} == {linear}
        assert all(list(each.rows) == list(count) for each in found)
        assert all(each.seconds == pytest.approx(growth, abs=0.05) for each in found)


def test_weights_are_those_of_the_shapes() -> None:
    for size, nbytes in WEIGHTS.items():
        shape = vendor.SIZES[size]
        wide = shape.n_embd
        layer = 12 * wide**2 + 13 * wide
        embeddings = (shape.vocab_size + shape.n_positions) * wide
        assert nbytes == 4 * (shape.n_layer * layer + embeddings + 2 * wide)


def test_all_plots_are_small_and_say_nothing_of_the_day(tmp_path: Path) -> None:
    results = everything(1.3, 50 * MB)
    for draw in (plots.ratios, plots.scaling):
        figure = draw(results)
        assert figure
        text = plots.write(figure, tmp_path / "plot.svg").read_text()
        assert len(text) < 60_000
        assert "prefers-color-scheme:dark" in text
        assert "currentColor" in text
        assert "<dc:date>" not in text


def test_every_promise_has_a_cell_for_each_size_and_place() -> None:
    cells = lines(tables.of_checkpoints(everything(1.3, 50 * MB)))
    assert {len(row) for row in cells.values()} == {6}

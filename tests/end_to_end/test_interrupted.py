"""Real processes, stopped at random moments: the old output or none, and no litter.

`ROUNDS=500 pytest tests/end_to_end/test_interrupted.py` stops so many of each kind.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers import vendor
from tests.helpers.running import contents, environ, partials, run, start

ROUNDS = int(os.environ.get("ROUNDS", "8"))  # spread over the commands


class Case(NamedTuple):
    """A command with the name of its output, what that holds when it is done, and an older one."""

    words: tuple[object, ...]
    output: str
    complete: dict[str, bytes]
    older: Path

    def prepare(self, folder: Path, *, older: bool) -> dict[str, bytes]:
        """What lies in the new `folder`: nothing, or the output of an older run."""
        if older:
            shutil.copytree(self.older, folder, copy_function=os.link)
        else:
            folder.mkdir()
        return contents(folder)


SHAPE = vendor.Shape(3, 512, 8, 2048, 4000, 256)  # 46 MB, half of it transposed
COMMANDS = {
    "out.safetensors": ("convert",),
    "out": ("extract",),
    "sharded.safetensors": ("convert", "--max-shard-size", "9MB"),
    "hf": ("convert", "--to", "hf"),
    "out.gguf": ("convert", "--no-vocab"),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("complete")
    found = []
    for seed, age in enumerate(("new", "old")):
        vendor.write(SHAPE, folder / age, seed=seed)
        vendor.write_config(SHAPE, folder / age)
    for name, (command, *options) in COMMANDS.items():
        made = {age: folder / f"{age} {name}" for age in ("new", "old")}
        for age, place in made.items():
            place.mkdir()
            done = run(command, folder / age, *options, "-o", place / name)
            assert done.code == 0, done.err
        words = (command, folder / "new", *options)
        found.append(Case(words, name, contents(made["new"]), made["old"]))
        assert found[-1].complete != contents(made["old"])
        assert found[-1].complete.keys() == contents(made["old"]).keys()
    return found


def writing(folder: Path, process: "subprocess.Popen[bytes]") -> None:
    """Return when the process has begun to write, or has ended."""
    while process.poll() is None and not partials(folder):
        time.sleep(0.0005)


def stopped(case: Case, folder: Path, number: signal.Signals, delay: float) -> tuple[int, str]:
    """The exit code and standard error of a run that gets the signal `delay` s into writing."""
    process = start(*case.words, "-o", folder / case.output, "--overwrite")
    writing(folder, process)
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate()
    return process.returncode, err.decode()


def is_one_of_both(folder: Path, case: Case, old: dict[str, bytes]) -> bool:
    """Is the output what it was, all of what it should become, or not there?"""
    found = {name: data for name, data in contents(folder).items() if ".partial" not in name}
    index = "sharded.safetensors.index.json"
    if index in case.complete and index not in found and not old:
        return True  # shards without their index are no model
    return found in ({}, old, case.complete)


@pytest.mark.parametrize(
    ("number", "code", "rounds"),
    [
        (signal.SIGINT, 130, ROUNDS),
        (signal.SIGTERM, 143, ROUNDS),
        (signal.SIGHUP, 129, ROUNDS // 4),
    ],
)
def test_a_stopped_run_leaves_the_old_output_or_none_and_no_temporary(
    cases: list[Case], tmp_path: Path, number: signal.Signals, code: int, rounds: int
) -> None:
    chance = random.Random(int(number))
    codes = []
    for index in range(rounds):
        case = cases[index % len(cases)]
        folder = tmp_path / str(index)
        old = case.prepare(folder, older=bool(index % 2))
        result, err = stopped(case, folder, number, chance.uniform(0, 0.06))
        # CPython dies of the signal, which a shell reports as the same code, if it comes while
        # exec() runs (an import did) or while the interpreter ends
        assert result in (0, code, -number), err
        assert "Traceback" not in err
        assert "Exception ignored in" not in err
        assert partials(folder) == []
        assert is_one_of_both(folder, case, old)
        codes.append(result)
    assert code in codes


DROPPED = """
import signal, sys, time, weakref
from cgpt_convert import cli

class Noisy:
    def __del__(self):
        signal.raise_signal({number})

class Plain:
    pass

def work(**_):
    {drop}
    print("went on", flush=True)
    time.sleep(60)

cli.group.main = work
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    "drop",
    ["Noisy()", "weakref.finalize(Plain(), Noisy)", "weakref.ref(Plain(), lambda _: Noisy())"],
)
@pytest.mark.parametrize(
    ("number", "code", "err"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_is_not_lost_where_nobody_can_catch_what_its_handler_raises(
    number: signal.Signals, code: int, err: str, drop: str
) -> None:
    program = DROPPED.format(number=int(number), drop=drop)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=False,
        env=environ(),
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (code, err)


def test_what_else_the_interpreter_drops_is_still_told_of() -> None:
    program = "import signal\n" + DROPPED.format(number="None", drop="Noisy()")
    program = program.replace("time.sleep(60)", "")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, env=environ(), text=True
    )
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "TypeError" in done.stderr


def test_a_killed_run_leaves_the_old_output_or_none_and_the_next_cleans_up(
    cases: list[Case], tmp_path: Path
) -> None:
    chance = random.Random(9)
    litter = 0
    for index in range(ROUNDS):
        case = cases[index % len(cases)]
        folder = tmp_path / str(index)
        old = case.prepare(folder, older=bool(index % 2))
        result, _ = stopped(case, folder, signal.SIGKILL, chance.uniform(0, 0.06))
        assert result in (0, -signal.SIGKILL)
        assert is_one_of_both(folder, case, old)
        litter += len(partials(folder))
        assert run(*case.words, "-o", folder / case.output, "--overwrite").code == 0
        assert partials(folder) == []
        assert contents(folder) == case.complete
    assert litter


@pytest.mark.parametrize("round_", range(len(COMMANDS)))
def test_of_two_processes_exactly_one_wins(cases: list[Case], tmp_path: Path, round_: int) -> None:
    case = cases[round_]
    both = [start(*case.words, "-o", tmp_path / case.output) for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in both]
    assert sorted(process.returncode for process in both) == [0, 4], errors
    assert "already exists" in "".join(errors)
    assert contents(tmp_path) == case.complete


def test_two_processes_that_may_overwrite_both_succeed(cases: list[Case], tmp_path: Path) -> None:
    case = cases[0]
    words = (*case.words, "-o", tmp_path / case.output, "--overwrite")
    both = [start(*words) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == [b"", b""]
    assert [process.returncode for process in both] == [0, 0]
    assert contents(tmp_path) == case.complete

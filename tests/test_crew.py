"""Threads: the first error or a Ctrl-C stops all, nothing goes on behind the caller's back."""

import functools
import subprocess
import sys
import threading
import time

import pytest

from cgpt_convert.output.crew import Crew


def test_import_all_imports_what_rearranging_needs() -> None:
    line = "import sys; from cgpt_convert.values import blocks; blocks.import_all(); "
    line += "print({'cgpt_convert.values.' + n for n in ('gather', 'cast', 'quantize')} <= "
    line += "sys.modules.keys(), 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["True", "True"]


def test_every_job_is_done_once_by_any_number_of_threads() -> None:
    for size in (1, 2, 7):
        done: list[int] = []
        jobs = [functools.partial(done.append, i) for i in range(50)]
        Crew(size).run(jobs, prepare=lambda: None)
        assert sorted(done) == list(range(50))


def test_each_run_waits_for_its_own_preparation() -> None:
    crew = Crew(2)
    crew.run([lambda: None], prepare=lambda: None)
    prepared = threading.Event()
    early: list[bool] = []

    def needs() -> None:
        crew.wait_prepared()
        early.append(not prepared.is_set())

    def prepare() -> None:
        time.sleep(0.2)
        prepared.set()

    crew.run([needs, needs], prepare)
    assert early == [False, False]


def test_the_first_error_is_raised_and_stops_the_others() -> None:
    crew = Crew(2)
    started = threading.Event()
    others = threading.active_count()  # of this test, and of libraries that others imported

    def fails() -> None:
        started.wait(5)
        raise ValueError("first")

    def long() -> None:
        started.set()
        while True:
            crew.go_on()
            time.sleep(0.001)

    with pytest.raises(ValueError, match="first"):
        crew.run([fails, long], prepare=lambda: None)
    end = time.monotonic() + 5
    while threading.active_count() > others and time.monotonic() < end:
        time.sleep(0.001)  # a thread that said it is done still has to end
    assert threading.active_count() <= others


@pytest.mark.parametrize("where", ["prepare", "job"])
def test_a_ctrl_c_in_the_calling_thread_stops_the_others(where: str) -> None:
    crew = Crew(2)
    steps: list[int] = []
    working = threading.Event()

    def long() -> None:
        while True:
            crew.go_on()
            steps.append(1)
            working.set()
            time.sleep(0.001)

    def interrupted() -> None:
        working.wait(5)
        raise KeyboardInterrupt

    nothing = (lambda: None) if where == "job" else interrupted
    with pytest.raises(KeyboardInterrupt):
        crew.run([interrupted, long], prepare=nothing)
    count = len(steps)
    time.sleep(0.05)
    assert len(steps) == count > 0

"""Threads: the first error or a Ctrl-C stops all, nothing goes on behind the caller's back."""

import functools
import subprocess
import sys
import threading
import time

import pytest

from cgpt_convert.core.threads import Event, WorkerPool, in_order


def test_import_all_imports_what_rearranging_needs() -> None:
    line = "import sys; from cgpt_convert.tensors import read; read.import_all(); "
    line += "print({'cgpt_convert.tensors.' + n for n in ('gather', 'cast', 'quantize')} <= "
    line += "sys.modules.keys(), 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["True", "True"]


def test_every_job_is_done_once_by_any_number_of_threads() -> None:
    for size in (1, 2, 7):
        done: list[int] = []
        jobs = [functools.partial(done.append, i) for i in range(50)]
        WorkerPool(size).run(jobs, prepare=lambda: None)
        assert sorted(done) == list(range(50))


def test_each_run_waits_for_its_own_preparation() -> None:
    workers = WorkerPool(2)
    workers.run([lambda: None], prepare=lambda: None)
    prepared = threading.Event()
    early: list[bool] = []

    def needs() -> None:
        workers.wait_prepared()
        early.append(not prepared.is_set())

    def prepare() -> None:
        time.sleep(0.2)
        prepared.set()

    workers.run([needs, needs], prepare)
    assert early == [False, False]


def test_the_first_error_is_raised_and_stops_the_others() -> None:
    workers = WorkerPool(2)
    started = threading.Event()
    others = threading.active_count()  # of this test, and of libraries that others imported

    def fails() -> None:
        started.wait(5)
        raise ValueError("first")

    def long() -> None:
        started.set()
        while True:
            workers.go_on()
            time.sleep(0.001)

    with pytest.raises(ValueError, match="first"):
        workers.run([fails, long], prepare=lambda: None)
    end = time.monotonic() + 5
    while threading.active_count() > others and time.monotonic() < end:
        time.sleep(0.001)  # a thread that said it is done still has to end
    assert threading.active_count() <= others


@pytest.mark.parametrize("where", ["prepare", "job"])
def test_a_ctrl_c_in_the_calling_thread_stops_the_others(where: str) -> None:
    workers = WorkerPool(2)
    steps: list[int] = []
    working = threading.Event()

    def long() -> None:
        while True:
            workers.go_on()
            steps.append(1)
            working.set()
            time.sleep(0.001)

    def interrupted() -> None:
        working.wait(5)
        raise KeyboardInterrupt

    nothing = (lambda: None) if where == "job" else interrupted
    with pytest.raises(KeyboardInterrupt):
        workers.run([interrupted, long], prepare=nothing)
    count = len(steps)
    time.sleep(0.05)
    assert len(steps) == count > 0


def test_progress_is_told_by_the_calling_thread_only() -> None:
    """Also while that thread has nothing to do but to wait."""
    told: list[tuple[int, int]] = []
    workers = WorkerPool(3, lambda units: told.append((threading.get_ident(), units)))
    waiting = threading.Event()

    def long() -> None:
        for _ in range(20):
            workers.advance(1)
            time.sleep(0.03)
        waiting.set()

    workers.run([functools.partial(workers.advance, 5), long, long], prepare=lambda: None)
    assert {thread for thread, _ in told} == {threading.get_ident()}
    assert sum(units for _, units in told) == 45
    assert len(told) > 3


def test_a_lock_that_a_ctrl_c_left_taken_while_drawing_stops_nobody() -> None:
    taken = threading.Lock()  # as tqdm's, but it belongs to no thread

    def draw(_units: int) -> None:
        taken.acquire()
        raise KeyboardInterrupt

    workers = WorkerPool(4, draw)

    def job() -> None:
        for _ in range(100):
            workers.go_on()
            workers.advance(1)
            time.sleep(0.001)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        workers.run([job] * 8, prepare=lambda: None)
    assert taken.locked()
    assert time.monotonic() - begun < 5


def test_an_event_is_seen_by_all_and_may_be_set_twice() -> None:
    event = Event()
    assert not event.wait(0.01)
    seen: list[bool] = []
    waiters = [threading.Thread(target=lambda: seen.append(event.wait(5))) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    event.set()
    event.set()
    for waiter in waiters:
        waiter.join(5)
    assert seen == [True] * 3
    assert event.is_set()
    assert event.wait(0)


def test_an_event_whose_waiter_was_interrupted_still_ends_the_others() -> None:
    """The worst moment: the waiter has the lock, and its Ctrl-C comes before it gives it back."""
    event = Event()
    event.set()
    event._lock.acquire()  # noqa: SLF001  what an interrupt leaves behind
    assert event.wait(0.01)
    late = Event()
    late._lock.release()  # noqa: SLF001  what an interrupt leaves behind
    late._lock.acquire()  # noqa: SLF001  taken by the one that was interrupted
    late.set()
    assert late.wait(0.01)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.05 if number == 0 else 0)
        return number * number

    assert list(in_order(slow_first, range(50), threads)) == [n * n for n in range(50)]
    assert list(in_order(slow_first, [], threads)) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_one_item_is_raised_and_ends_the_work(threads: int) -> None:
    done: list[int] = []

    def fails(number: int) -> None:
        if number == 3:
            raise ValueError("three")
        done.append(number)
        time.sleep(0.01)

    with pytest.raises(ValueError, match="three"):
        list(in_order(fails, range(10_000), threads))
    time.sleep(0.1)
    assert len(done) < 100


WAITING = """
import _thread, sys, threading, time
from cgpt_convert import cli
from cgpt_convert.core.threads import in_order

def work(**_):
    threading.Timer(0.3, _thread.interrupt_main).start()
    list(in_order(lambda _: time.sleep(60), range(4), 2))

cli.group.main = work
sys.exit(cli.main())
"""


def test_a_ctrl_c_does_not_wait_for_the_calls_that_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WAITING], capture_output=True, check=False, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")

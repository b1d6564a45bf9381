"""Progress on standard error: a line that is redrawn on a terminal, or lines for a log.

Only the main thread draws. It does so when a step reports progress, and, where the system has an
interval timer, from a signal handler, so that a step that reports nothing for a while is also seen
to run. A handler may interrupt any code, so it takes no locks: tqdm formats the line, `os.write`
writes it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic

from cgpt_convert.cli.table import size, width
from cgpt_convert.core.threads import untold

AUTO, PLAIN, NONE = MODES = ("auto", "plain", "none")
_FIRST = 0.5  # seconds until a step is drawn
_REDRAWN = 0.1  # seconds between redrawings of the line
_TICK = 0.25  # seconds between signals
LOG_EVERY = 10.0  # seconds between lines of a log
_NARROW = 20  # columns below which nothing is drawn
_BAR = 70  # columns below which the line has no bar and no times
_SHORT = "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} {rate_fmt}"


class Step:
    """A step of a command: `done` of `total` units; the total is 0 if it is not known."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.begun = monotonic()


class Display:
    """The steps that run, of which the innermost is shown."""

    def __init__(self) -> None:
        self.mode = AUTO
        self.quiet = False
        self._steps: list[Step] = []
        self._drawn = 0  # columns of the line on the terminal
        self._last = 0.0  # when it was drawn, or the last line was logged

    def kind(self) -> str:
        """Return AUTO for a redrawn line, PLAIN for lines of a log, and NONE for nothing."""
        if self.quiet or not sys.stderr or (self.mode == AUTO and not sys.stderr.isatty()):
            return NONE
        return PLAIN if self.mode == AUTO and os.environ.get("TERM") == "dumb" else self.mode

    def begin(self, step: Step) -> None:
        """Show this step until it ends."""
        if not self._steps:
            self._last = monotonic()
        self._steps.append(step)
        _start_timer()

    def end(self) -> None:
        """End the innermost step."""
        self.clear()
        self._steps.pop()
        if not self._steps:
            _stop_timer()

    def stop(self) -> None:
        """Show nothing more: the command ends, or was interrupted anywhere."""
        self._steps.clear()
        self.clear()
        _stop_timer()

    def tick(self) -> None:
        """Draw the innermost step if it is time."""
        if not self._steps:
            return
        step, now = self._steps[-1], monotonic()
        kind = self.kind()
        if kind == PLAIN and now - self._last >= LOG_EVERY:
            self._last = now
            _write(logged_line(step, now - step.begun) + "\n")
        elif kind == AUTO and now - step.begun >= _FIRST and now - self._last >= _REDRAWN:
            self._last = now
            self._draw(step, now - step.begun)

    def clear(self) -> None:
        """Remove the line from the terminal, for other text or for good."""
        if self._drawn:
            _write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _draw(self, step: Step, seconds: float) -> None:
        columns = (width(err=True) or 0) - 1  # a line that is full may be wrapped
        if columns < _NARROW:
            return
        line = drawn_line(step, seconds, columns)
        _write("\r" + line + " " * (self._drawn - len(line)))
        self._drawn = len(line)


display = Display()


@contextmanager
def progress(label: str, total: int = 0, unit: str = "B") -> Iterator[Callable[[int], object]]:
    """Show a step. Yield a function that counts further units, for use in this thread only.

    Other threads than the main one show nothing.
    """
    if display.kind() == NONE or threading.current_thread() is not threading.main_thread():
        yield untold
        return
    import tqdm as _  # noqa: F401  not in the handler, which may interrupt an import

    step = Step(label, total, unit)

    def advance(done: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("progress is reported by the thread that began it")
        step.done += done
        display.tick()

    display.begin(step)
    try:
        yield advance
    finally:
        display.end()


def drawn_line(step: Step, seconds: float, columns: int) -> str:
    """Return the line of a step for a terminal of so many columns."""
    from tqdm import tqdm

    if not step.total and not step.done:
        return f"{step.label} ... {tqdm.format_interval(seconds)}"[:columns]
    line: str = tqdm.format_meter(
        step.done,
        step.total or None,
        seconds,
        ncols=columns,
        prefix=step.label,
        ascii=not _has_blocks(),
        unit=step.unit,
        unit_scale=step.unit == "B",
        bar_format=None if columns >= _BAR else _SHORT,
    )
    return line[:columns]


def logged_line(step: Step, seconds: float) -> str:
    """Return the line of a step for a log, such as "writing: 45 %, 2.3 GB of 5.1 GB, 80 MB/s"."""
    parts = [f"{step.done * 100 // step.total} %"] if step.total else []
    if step.unit == "B" and step.done:
        of = f" of {size(step.total)}" if step.total else ""
        parts += [f"{size(step.done)}{of}", f"{size(int(step.done / seconds))}/s"]
    elif step.total:
        parts.append(f"{step.done:,} of {step.total:,} {step.unit.strip()}")
    return f"{step.label}: {', '.join([*parts, f'{seconds:.0f} s'])}"


def _has_blocks() -> bool:
    """Return whether standard error takes the characters of a fine bar."""
    return (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"


def _write(text: str) -> None:
    with suppress(OSError):  # nobody reads it: no reason to fail
        os.write(sys.stderr.fileno(), text.encode(sys.stderr.encoding or "ascii", "replace"))


def _on_alarm(_number: int, _frame: object) -> None:
    display.tick()


def _start_timer() -> None:
    """Have `display.tick` called regularly, unless another part of the program uses the signal."""
    if not hasattr(signal, "setitimer"):
        return
    if signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:
        signal.signal(signal.SIGALRM, _on_alarm)  # and left there: a signal may be on its way
    if signal.getsignal(signal.SIGALRM) == _on_alarm:
        signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)


def _stop_timer() -> None:
    if hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) == _on_alarm:
        signal.setitimer(signal.ITIMER_REAL, 0)

"""Progress: a bar on a terminal, lines for a log, nothing elsewhere or with --quiet."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryFile

import pytest

import cgpt_convert
from cgpt_convert.cli.progress import (
    AUTO,
    NONE,
    PLAIN,
    Step,
    display,
    drawn_line,
    logged_line,
    progress,
)
from cgpt_convert.core.threads import show_steps, step
from tests.helpers.recorded import FOLDER
from tests.helpers.running import run, spawn
from tests.helpers.terminal import on_terminal

DEMO = Path(cgpt_convert.__file__).parent / "demo"
MODEL = FOLDER / "cs" / "pytorch_model.bin"
UNIX = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no interval timer")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lines for a log, from now on and for this test only."""
    monkeypatch.setattr(display, "mode", PLAIN)
    yield
    display.stop()


@pytest.mark.usefixtures("plain")
def test_a_log_gets_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("cgpt_convert.cli.progress.monotonic", lambda: now[0])
    with TemporaryFile("w+", encoding="utf-8") as err:
        with redirect_stderr(err), progress("writing", 5_000_000_000) as advance:
            for _ in range(9):
                now[0] += 2.5
                advance(500_000_000)
        err.seek(0)
        lines = err.read().splitlines()
    assert lines == [
        "writing: 40 %, 2 GB of 5 GB, 200 MB/s, 10 s",
        "writing: 80 %, 4 GB of 5 GB, 200 MB/s, 20 s",
    ]


@pytest.mark.parametrize(
    ("total", "unit", "done", "line"),
    [
        (0, "B", 0, "opening: 20 s"),
        (0, "B", 3_000_000, "opening: 3 MB, 150 kB/s, 20 s"),
        (40, " tokens", 7, "opening: 17 %, 7 of 40 tokens, 20 s"),
    ],
)
def test_a_line_has_what_is_known(total: int, unit: str, done: int, line: str) -> None:
    each = Step("opening", total, unit)
    each.done = done
    assert logged_line(each, 20.0) == line


@pytest.mark.parametrize("columns", range(20, 120, 7))
@pytest.mark.parametrize("total", [0, 5_000_000_000])
def test_a_drawn_line_fits_and_says_how_far_it_is(columns: int, total: int) -> None:
    each = Step("writing", total, "B")
    each.done = total // 4
    line = drawn_line(each, 20.0, columns)
    assert len(line) <= columns
    assert line.startswith("writing:" if total else "writing ... 00:20")
    assert ("25%" in line) == bool(total)


@UNIX
@pytest.mark.parametrize("columns", [25, 80])
def test_a_step_that_reports_nothing_is_seen_on_a_terminal(columns: int, tmp_path: Path) -> None:
    script = (
        "import time; from cgpt_convert.cli.progress import progress\n"
        "with progress('opening'): time.sleep(2.2)"
    )
    shown = on_terminal(script, folder=tmp_path, columns=columns, program=("-c",))
    assert shown.code == 0
    assert "opening ... 00:01" in shown.text
    assert re.split(r"[\r\n]+", shown.text)[-2:] == [" " * len("opening ... 00:02"), ""]


@UNIX
def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    script = (
        "import time; from cgpt_convert.cli import progress as module\n"
        "module.LOG_EVERY = 0.3\n"
        "with module.progress('opening'): time.sleep(1)"
    )
    shown = on_terminal(script, folder=tmp_path, program=("-c",), TERM="dumb")
    assert re.fullmatch(r"(opening: [01] s\n)+", shown.text)


@pytest.mark.usefixtures("plain")
def test_other_threads_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for a lock that is held at a Ctrl-C would never end."""
    monkeypatch.setattr("cgpt_convert.cli.progress.LOG_EVERY", 0.0)
    show_steps(progress)

    def work() -> None:
        with progress("writing") as advance, step("opening") as also:
            advance(1)
            also(1)

    with TemporaryFile("w+", encoding="utf-8") as err:
        with redirect_stderr(err):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            between = err.tell()
            work()
        err.seek(0)
        lines = err.read().splitlines()
    assert between == 0
    assert lines
    assert all(line.startswith("opening: ") for line in lines)  # the innermost step


@pytest.mark.usefixtures("plain")
def test_the_thread_that_began_a_step_reports_it() -> None:
    errors: list[str] = []

    with progress("writing", 1) as advance:

        def work() -> None:
            try:
                advance(1)
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert errors == ["progress is reported by the thread that began it"]


class Slow(BaseHTTPRequestHandler):
    """Serves the demo's model, whole, in a second."""

    def do_GET(self) -> None:
        if not self.path.endswith("/pytorch_model.bin"):
            self.send_error(404)
            return
        body = (DEMO / "pytorch_model.bin").read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for start in range(0, len(body), len(body) // 10):
            self.wfile.write(body[start : start + len(body) // 10])
            time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def slow_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/pytorch_model.bin"
    server.shutdown()
    server.server_close()


def test_a_download_shows_its_progress(slow_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgpt_convert.cli.progress.LOG_EVERY", 0.2)
    done = run("inspect", slow_url, "--download", "--progress", "plain")
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("downloading: ")]
    shares = [int(re.match(r"downloading: (\d+) %, ", line)[1]) for line in lines]  # type: ignore[index]
    assert len(shares) >= 3
    assert shares == sorted(set(shares))
    quiet = run("inspect", slow_url, "--download", "--progress", "plain", "--quiet")
    assert (quiet.raw, quiet.err) == (done.raw, "")


def test_quiet_keeps_results_and_errors(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(MODEL.read_bytes())
    (tmp_path / "other.bin").write_bytes(MODEL.read_bytes())
    words = ("digest", tmp_path / "m.bin")
    loud, quiet = run(*words), run(*words, "-q")
    assert quiet.raw == loud.raw
    failed = run("digest", tmp_path / "none", "--quiet")
    assert (failed.code, failed.err) == (2, f"error: {tmp_path / 'none'}: no such file\n")
    generate = ("generate", DEMO, "--ids", "1,2", "--max-new-tokens", "2")
    assert "tokens/s" in run(*generate).err
    assert run(*generate, "-q").err == ""


@pytest.mark.parametrize("how", [AUTO, PLAIN, NONE])
def test_short_commands_show_no_progress_in_pipes(how: str, tmp_path: Path) -> None:
    done = spawn("convert", MODEL, "-o", tmp_path / "out.npz", "--progress", how)
    assert (done.code, done.err) == (0, "")


def test_a_closed_standard_error_is_no_error(tmp_path: Path) -> None:
    """Python then has None in its place."""
    script = f"exec {sys.executable} -m cgpt_convert digest {MODEL} --progress plain 2>&-"
    shown = on_terminal(
        "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1], shell=True).returncode)",
        script,
        folder=tmp_path,
        program=("-c",),
    )
    assert shown.code == 0
    assert shown.text.startswith("sha256:")

"""Run the scanner, then the loaders, on one input after another in a child process.

The child has no network, little memory and time, and a folder of its own. It is replaced when an
input ends it, and after some hundred inputs. What it reports is one line a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import json
import os
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from cgpt_convert import cli
from cgpt_convert.core.errors import CgptError
from fuzz import loaders
from fuzz.recorder import Audit, Events

SECONDS = 10  # for an input, all loaders together
BATCH = 400  # inputs until a child is replaced
_MEMORY = 6 << 30
_FILE = 64 << 20
_NO_NETWORK = 0x40000000  # CLONE_NEWNET


class Outcome(NamedTuple):
    """What became of one input."""

    code: int  # exit code of `scan`
    events: list[str]  # what loaders did beyond reading weights
    ended: str = ""  # how the child ended, if it did, and in which loader
    report: str = ""  # of `scan`

    @property
    def is_find(self) -> bool:
        """Return whether `scan` passed what a loader acted on, or failed itself."""
        return (self.code == 0 and bool(self.events)) or self.code not in (0, 1, 3)


class Child:
    """A child process, which is started when it is needed."""

    def __init__(self, *, trusting: bool = False) -> None:
        """With `trusting`, `scan` is not asked: every input counts as passed."""
        self.trusting = trusting
        self.pid = self.done = 0
        self.ends = (-1, -1)
        self.folder = ""

    def run(self, data: bytes, name: str) -> Outcome:
        """Scan and load `data` as a file of that name."""
        if not self.pid or self.done >= BATCH:
            self.close()
            self._start()
        self.done += 1
        try:
            _send(self.ends[1], name.encode() + b"\0" + data)
            answer, loader = self._answer()
        except BrokenPipeError:
            answer, loader = None, ""
        if answer is not None:
            return Outcome(**answer)
        ended = self._ended()
        if loader.startswith("scan"):
            return Outcome(-1, [], f"{ended} in {loader}")
        return Outcome(0, [f"{loader}: {ended}"] * ("signal" in ended), ended)

    def close(self) -> None:
        """End the child and remove its folder."""
        if self.pid:
            for end in self.ends:
                os.close(end)
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.pid = self.done = 0

    def _answer(self) -> tuple[dict[str, Any] | None, str]:
        loader = "scan"
        while True:
            ready, _, _ = select.select([self.ends[0]], [], [], 2 * SECONDS)
            line = _receive(self.ends[0]) if ready else None
            if line is None:
                return None, loader
            if line[:1] == b"{":
                return json.loads(line), loader
            loader = line.decode()

    def _ended(self) -> str:
        """How the child ended; it is ended if it still runs."""
        for end in self.ends:
            os.close(end)
        pid = status = 0
        for _ in range(100):  # its pipes may be closed a moment before it ends
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.01)
        else:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.pid = 0
        if not pid:
            return "no answer in time"
        code = os.waitstatus_to_exitcode(status)
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _start(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="fuzz-")
        from_child, to_parent = os.pipe()
        from_parent, to_child = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(from_child)
            os.close(to_child)
            _serve(from_parent, to_parent, self.folder, trusting=self.trusting)
        os.close(to_parent)
        os.close(from_parent)
        self.ends = from_child, to_child


def _send(end: int, data: bytes) -> None:
    data = struct.pack("<I", len(data)) + data
    while data:
        data = data[os.write(end, data) :]


def _receive(end: int) -> bytes | None:
    head = _exactly(end, 4)
    return None if head is None else _exactly(end, struct.unpack("<I", head)[0])


def _exactly(end: int, size: int) -> bytes | None:
    out = b""
    while len(out) < size:
        piece = os.read(end, size - len(out))
        if not piece:
            return None
        out += piece
    return out


# -- in the child


def _serve(inputs: int, answers: int, folder: str, *, trusting: bool) -> NoReturn:
    try:
        _confine(folder)
        audit = Audit(folder)
        sys.addaudithook(audit)
        printed = _captured(folder)
        while (message := _receive(inputs)) is not None:
            name, _, data = message.partition(b"\0")
            answer = _one(data, name.decode(), folder, audit, answers, printed, trusting=trusting)
            _send(answers, json.dumps(answer).encode())
    finally:
        os._exit(9)


def _confine(folder: str) -> None:
    """Take away the network, and all but some memory and file size."""
    ctypes.CDLL(None).unshare(_NO_NETWORK)  # fails without rights; the audit hook stops sockets too
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE, _FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.makedirs(f"{folder}/tmp")
    tempfile.tempdir = os.environ["TMPDIR"] = f"{folder}/tmp"
    os.makedirs(f"{folder}/cwd")
    os.chdir(f"{folder}/cwd")
    signal.signal(signal.SIGALRM, _late)
    faulthandler.disable()
    warnings.simplefilter("ignore")


def _late(*_: object) -> NoReturn:
    raise TimeoutError


def _captured(folder: str) -> int:
    """Send standard output to a file, which shows what a loader printed."""
    printed = os.open(f"{folder}/printed", os.O_RDWR | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(printed, 1)
    os.dup2(nothing, 2)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  whatever a test runner put there
    return printed


def _one(  # noqa: PLR0913  a child has no other state
    data: bytes,
    name: str,
    folder: str,
    audit: Audit,
    answers: int,
    printed: int,
    *,
    trusting: bool,
) -> dict[str, Any]:
    path = f"{folder}/{name}"
    with open(path, "wb") as file:
        file.write(data)
    with _alarm():
        code, report = (0, "") if trusting else scanned(path)
    events = Events()
    if code == 0:
        before = os.fstat(printed).st_size
        audit.events = events
        try:
            with _alarm():
                loaders.load_all(path, events, lambda loader: _send(answers, loader.encode()))
        except TimeoutError:
            pass
        finally:
            audit.events = None
        sys.stdout.flush()
        if os.fstat(printed).st_size > before:
            events.add("a loader printed something")
        for left in os.listdir(f"{folder}/cwd"):
            events.add(f"a loader wrote {left}")
            os.unlink(f"{folder}/cwd/{left}")
    os.unlink(path)
    return {"code": code, "events": events.seen, "report": report}


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def scanned(path: str) -> tuple[int, str]:
    """Return the exit code of `cgpt-convert scan PATH`, and what it prints."""
    out = io.StringIO()
    words = ["scan", "--jobs", "1", path]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = cli.group.main(words, prog_name="cgpt-convert", standalone_mode=False)
    except CgptError as error:
        return error.exit_code, str(error)
    except Exception as error:  # noqa: BLE001  a traceback is a find
        return -1, repr(error)
    return int(code or 0), out.getvalue()[:2000]

"""The command line: one module a command, each parses, calls and prints.

A command's module is imported when the command runs, so that `--help` costs an import of click
and nothing else. Errors become exit codes here and nowhere else.
"""

from __future__ import annotations

import _thread
import gc
import importlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cgpt_convert import __version__
from cgpt_convert.core.errors import BadRequest, CgptError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# name -> the line that `cgpt-convert --help` shows; the module of that name has the rest
COMMANDS = {
    "inspect": "Show what is in a weight file, and whether it is safe.",
    "extract": "Write the raw tensors to a folder, with the mapping.",
    "convert": "Write safetensors, NumPy or other formats.",
    "digest": "Print one digest for the weights, whatever the container.",
    "lock": "Write down which weights these are, to be reviewed and kept.",
    "verify": "Compare weights with their source, a lock or their own claim.",
    "diff": "Show which tensors of two files differ, and by how much.",
    "scan": "Report what loading files would run.",
    "generate": "Continue a text with the model in a weight file.",
    "models": "Show the models that are known by name.",
    "eval": "Measure how well a model predicts a text, and another against it.",
    "demo": "Run everything on a small model that comes along.",
}

_INTERRUPTED = 130
_AGAIN = 0.001  # seconds after which a signal that was dropped is sent again
_STDOUT_CLOSED = 141  # as a shell reports a process that SIGPIPE ended


class _StdoutClosed(Exception):
    """Whoever reads standard output has left."""


class _Lazy(click.Group):
    """A group whose commands are imported when they are called."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # of which click would make exit code 1
            raise _StdoutClosed from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cgpt_convert.cli.{cmd_name}")
        command: click.Command = module.command
        # what sets how to reach a URL comes after what a command is about
        command.params.sort(key=lambda param: not param.expose_value)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cgpt-convert")
def group() -> None:
    """Look into PyTorch weight files and convert them, without torch and without running them.

    SOURCE is a weight file (.bin, .pt, .pth, .ckpt, .safetensors, .gguf, .npz, .npy), a model
    folder, an *.index.json, an extracted parameters/ folder, or a URL (https, s3, hf and others).

    \b
    Exit codes: 0 done and right; 1 a check found a difference or a danger; 2 bad usage;
    3 the input is malformed, unsupported or unreadable; 4 the output could not be written;
    130 interrupted.
    """  # noqa: D301  \b is click's, and must be the character


def main() -> int:
    """The exit code of the command that `sys.argv` asks for."""
    gc.disable()  # a tenth of an inspect's time; a command ends before cycles add up
    # the threads are ours: BLAS, which reads this when NumPy is imported, is to start no others
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.unraisablehook = _unraisable
    for number in _terminating():
        signal.signal(number, _terminate)
    if sys.stdout is None:  # it was closed before we began
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  as long as we live
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to be interrupted
        for number in _terminating():
            signal.signal(number, signal.SIG_DFL)
        sys.stdout.flush()
    except (BrokenPipeError, _StdoutClosed):
        code = _STDOUT_CLOSED
        _drop_stdout()
    except OSError as error:
        code = 4
        _complain(f"{error.filename or 'standard output'}: {os.strerror(error.errno or 0)}")
        _drop_stdout()
    return code


def _drop_stdout() -> None:
    """What is still buffered must not be written again when the interpreter exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run() -> int:
    try:
        try:
            code = group.main(prog_name="cgpt-convert", standalone_mode=False)
        finally:
            _tell_traffic()
    except click.ClickException as error:
        error.show()
        _print_error(BadRequest.kind, error.format_message(), error.exit_code)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        _print_error("interrupted", "interrupted", _INTERRUPTED)
        return _INTERRUPTED
    except CgptError as error:
        error.where = error.where.replace("\n", "\\n")
        _complain(str(error))
        _print_error(error.kind, error.message, error.exit_code, error.where, error.hint)
        return error.exit_code
    return code if isinstance(code, int) else 0


def _print_error(kind: str, message: str, exit_code: int, where: str = "", hint: str = "") -> None:
    """Print an error as JSON on standard output if the command line asks for JSON."""
    words = sys.argv[1:]
    if "--json" in (words[: words.index("--")] if "--" in words else words):
        import json

        told = {"kind": kind, "message": message, "where": where, "hint": hint}
        click.echo(json.dumps({"error": {**told, "exit_code": exit_code}}, indent=2))


def _tell_traffic() -> None:
    """Say on standard error what was asked for over a network, if anything was."""
    if "cgpt_convert.sources.remote.settings" in sys.modules:
        from cgpt_convert.cli.table import counted, size
        from cgpt_convert.sources.remote.settings import traffic

        requests, nbytes, total, sent = traffic.take()
        if requests:
            told = [counted(requests, "request")]
            told += [f"{size(nbytes)} of {size(total)}"] if total else []
            told += [f"{size(sent)} sent"] if sent else []
            click.echo(", ".join(told), err=True)


def _complain(message: str) -> None:
    from cgpt_convert.core.text import printable

    lines = map(printable, message.split("\n"))
    click.echo("cgpt-convert: " + "\n".join(lines), err=True)


class _Terminated(SystemExit):
    """A signal's own exit, by way of every `finally`, so that temporary files go."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(128 + number)
        self.number = number


def _terminating() -> list[signal.Signals]:
    """The signals that end a process; one that is ignored stays so: that is what nohup does."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [signal.Signals[name] for name in names]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def _terminate(number: int, _frame: object) -> NoReturn:
    raise _Terminated(signal.Signals(number))


def _unraisable(dropped: UnraisableHookArgs) -> None:
    """Send a signal again if the interpreter dropped what its handler raised.

    It does so where nobody could catch it: in `__del__` and in callbacks of weak references, such
    as those of importlib's locks.
    """
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        number = signal.SIGINT
    elif isinstance(dropped.exc_value, _Terminated):
        number = dropped.exc_value.number
    else:
        sys.__unraisablehook__(dropped)
        return
    _thread.start_new_thread(_send_again, (number, _thread.get_ident()))


def _send_again(number: signal.Signals, main_thread: int) -> None:
    time.sleep(_AGAIN)
    if hasattr(signal, "pthread_kill"):  # which ends a wait in that thread, too
        signal.pthread_kill(main_thread, number)
    else:
        _thread.interrupt_main(number)

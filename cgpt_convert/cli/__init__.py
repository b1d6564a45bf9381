"""The command line: one module per command, which parses, calls the library and prints.

A command's module is imported when the command runs, so that `--help` imports only click. Errors
are converted into exit codes only in this module.
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
from cgpt_convert.core.errors import BadRequest, CgptError, Unsupported, cannot_write

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# name -> its line in `cgpt-convert --help`; the command is in the module of that name
COMMANDS = {
    "inspect": "Show what is in a weight file, and whether it is safe.",
    "extract": "Write the raw tensors to a folder, with a mapping.",
    "convert": "Convert to safetensors, GGUF, torch, NumPy and other formats.",
    "digest": "Print one digest for the weights, independent of the format.",
    "lock": "Write a lock file: a hash for every tensor.",
    "verify": "Compare weights with their source, a lock file or their metadata.",
    "diff": "Show which tensors of two files differ, and by how much.",
    "scan": "Report what code loading the files would execute.",
    "generate": "Generate text with the model in a weight file.",
    "models": "Show the models that are known by name.",
    "eval": "Measure how well a model predicts a text, or compare two models.",
    "demo": "Tour the commands on a small bundled model.",
}

_INTERRUPTED = 130
_AGAIN = 0.001  # seconds until a dropped signal is sent again
_STDOUT_CLOSED = 141  # the exit code of a process ended by SIGPIPE in shells
# raised for `cgpt-convert` alone, from click 8.2 on
_NO_ARGUMENTS: type[Exception] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())


class _StdoutClosed(Exception):
    """The reader of standard output has closed it."""


class _Lazy(click.Group):
    """A click group that imports commands when they are called."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # click would exit with code 1
            raise _StdoutClosed from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command's name, the command and its arguments. Raises BadRequest."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from cgpt_convert.core.text import suggestion

            near = suggestion(args[0], COMMANDS)
            hint = f"{near}`{ctx.command_path} --help` lists the commands"
            raise BadRequest(f"no such command {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cgpt_convert.cli.{cmd_name}")
        command: click.Command = module.command
        # options for remote files come last
        command.params.sort(key=lambda param: not param.expose_value)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


# `cli.style` decides about colour, so click must not remove it
_CONTEXT = {"help_option_names": ["-h", "--help"], "color": True}


@click.group(cls=_Lazy, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="cgpt-convert")
def group() -> None:
    """Inspect, scan, convert and verify PyTorch weight files without torch.

    Nothing in a file is executed. SOURCE is a weight file (.bin, .pt, .pth, .ckpt, .safetensors,
    .gguf, .npz, .npy), a model folder, a shard index (*.index.json), a folder written by extract,
    or a URL (https, s3, hf and others).

    \b
    Exit codes:
      0    success
      1    a check failed: a difference, or unsafe content
      2    bad usage
      3    the input is malformed, unsupported or unreadable
      4    the output could not be written
      130  interrupted
    """  # noqa: D301  \b is click's, and must be the character


def main() -> int:
    """Run the command in `sys.argv` and return its exit code."""
    gc.disable()  # takes 10% of the time of inspect, and commands end before cycles accumulate
    # BLAS reads this when NumPy is imported; it must start no threads of its own
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.unraisablehook = _unraisable
    for number in _terminating():
        signal.signal(number, _terminate)
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open until exit
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done
        for number in _terminating():
            signal.signal(number, signal.SIG_DFL)
        sys.stdout.flush()
    except (BrokenPipeError, _StdoutClosed):
        code = _STDOUT_CLOSED
        _drop_stdout()
    except OSError as error:
        if not error.filename:
            _drop_stdout()
        where = error.filename or "standard output"
        code = _failed(cannot_write(error, where))
    return code


def _drop_stdout() -> None:
    """Redirect standard output, so that buffered text is not written again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run() -> int:
    try:
        try:
            code = group.main(prog_name="cgpt-convert", standalone_mode=False)
        finally:
            _end_display()
    except _NO_ARGUMENTS as error:
        click.echo(error, err=True)  # the help
        return BadRequest.exit_code
    except click.UsageError as error:
        from cgpt_convert.cli.error_output import from_click

        return _failed(from_click(error))
    except (click.Abort, KeyboardInterrupt):
        from cgpt_convert.cli.error_output import print_json_error

        click.echo("interrupted", err=True)
        print_json_error("interrupted", "interrupted", _INTERRUPTED)
        return _INTERRUPTED
    except CgptError as error:
        return _failed(error)
    except MemoryError:
        return _failed(Unsupported("not enough memory", hint="free some, or use fewer --jobs"))
    return code if isinstance(code, int) else 0


def _failed(error: CgptError) -> int:
    """Print the error; return its exit code."""
    from cgpt_convert.cli.error_output import print_error

    print_error(error)
    return error.exit_code


def _end_display() -> None:
    """Remove a progress line; print the number of requests and bytes sent over a network."""
    if "cgpt_convert.cli.progress" in sys.modules:
        from cgpt_convert.cli.progress import display

        display.stop()
        if display.quiet:
            return
    if "cgpt_convert.sources.remote.remote_settings" in sys.modules:
        from cgpt_convert.cli.table import size
        from cgpt_convert.core.text import counted
        from cgpt_convert.sources.remote.remote_settings import traffic

        requests, nbytes, total, sent = traffic.take()
        if requests:
            parts = [counted(requests, "request")]
            parts += [f"{size(nbytes)} of {size(total)}"] if total else []
            parts += [f"{size(sent)} sent"] if sent else []
            click.echo(", ".join(parts), err=True)


class _Terminated(SystemExit):
    """Exit for a signal that runs every `finally`, so that temporary files are removed."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(128 + number)
        self.number = number


def _terminating() -> list[signal.Signals]:
    """Return the terminating signals, without ignored ones, since nohup ignores SIGHUP."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [signal.Signals[name] for name in names]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def _terminate(number: int, _frame: object) -> NoReturn:
    raise _Terminated(signal.Signals(number))


def _unraisable(dropped: UnraisableHookArgs) -> None:
    """Send a signal again if the interpreter dropped its handler's exception.

    That happens where no code can catch it: in `__del__` and in weak reference callbacks, such as
    those of importlib's locks.
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
    if hasattr(signal, "pthread_kill"):  # it also interrupts a wait in that thread
        signal.pthread_kill(main_thread, number)
    else:
        _thread.interrupt_main(number)

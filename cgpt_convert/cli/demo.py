"""`cgpt-convert demo`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import click

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.cli import group
from cgpt_convert.cli.table import style
from cgpt_convert.errors import CannotWrite, CheckFailed
from cgpt_convert.opening import open_checkpoint
from cgpt_convert.output.sink import Options, write_folder
from cgpt_convert.plan import FilePlan
from cgpt_convert.values.digest import tensor_digest

_MODEL = "pytorch_model.bin"
_OUTPUTS = ("model.safetensors", "model.npz", "npy", "parameters")


@click.command("demo")
@click.argument("folder", metavar="[DIR]", type=click.Path(), default="cgpt-demo")
def command(folder: str) -> None:
    """Run everything on a small model that comes along, into DIR (cgpt-demo).

    The model has the shape and the storage layout of Cerebras-GPT, with random weights. Each file
    written is read again and compared with the source, bit for bit.
    """
    if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise CannotWrite("exists already", where=folder, hint="name another folder")
    model = os.path.join(folder, _MODEL)
    inside = resources.files("cgpt_convert") / "demo"
    files = [FilePlan(name, ((inside / name).read_bytes(),)) for name in (_MODEL, "config.json")]
    write_folder(files, folder, Options())
    _run("inspect", model, "--tree")
    for name in _OUTPUTS:
        output = os.path.join(folder, name)
        if name == "parameters":
            _run("extract", model, "-o", output)
        elif name == "npy":
            _run("convert", model, "-o", output, "--to", "npy")
        else:
            _run("convert", model, "-o", output)
        _compare(open_checkpoint(model), open_checkpoint(output))
    click.echo(f"\nThe files are in {folder}/.")


def _run(*words: str) -> None:
    """Show the command as one would type it, and run it."""
    click.echo(style(f"\n$ cgpt-convert {shlex.join(words)}", bold=True))
    group.main(list(words), standalone_mode=False)


def _compare(source: Checkpoint, output: Checkpoint) -> None:
    """Say that the output holds the source's tensors and no others; CheckFailed if it does not."""
    expected = {name: tensor_digest(tensor) for name, tensor in source.items()}
    found = {name: tensor_digest(tensor) for name, tensor in output.items()}
    wrong = sorted(expected.items() ^ found.items())
    if wrong:
        raise CheckFailed(f"{wrong[0][0]} is not as in the source", where=output.path)
    reader = _independent(output.path)
    by = f" by {reader.__module__.split('.')[0]} and by us" if reader else ""
    if reader:
        theirs = reader(output.path)
        for name in theirs.keys() - {"__metadata__"}:  # where an .npz notes its ties
            if theirs[name].tobytes() != source[name].numpy().tobytes():
                raise CheckFailed(f"{reader.__module__} reads {name} otherwise", where=output.path)
    click.echo(f"  read again{by}: all {len(found)} tensors equal the source, bit for bit")


def _independent(path: str) -> Callable[[str], Mapping[str, Any]] | None:
    """Another library's reader of such files, where there is one that the user has for sure."""
    if path.endswith(".npz"):
        import numpy as np

        return np.load
    if path.endswith(".safetensors"):
        from safetensors.numpy import load_file

        return load_file
    return None

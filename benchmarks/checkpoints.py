"""The checkpoints that are measured, made where they are missing."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import measure
from benchmarks.tasks import SMALL, gguf, target

LAYOUTS = ("cs", "hf")  # Conv1D weights as transposed views; contiguous weights


def checkpoint(size: str, layout: str, folder: Path) -> Path:
    """The path of a model's weights, in a folder with its configuration and tokenizer.

    Each is made by a process of its own: what it takes in memory, later ones would inherit.
    """
    home = folder / f"{size}-{layout}"
    path = home / "pytorch_model.bin"
    if not path.exists():
        _run("tests.helpers.vendor", size, str(home), "--layout", layout)
    if not (home / "vocab.json").exists():
        _run("benchmarks.model", size, layout, str(home))
    return path


def with_gguf(source: Path) -> Path:
    """The same path, after the model was written as GGUF beside it."""
    return _with(gguf(source), source)


def synthetic(tensors: int, shards: int, folder: Path) -> Path:
    """The path of a checkpoint of so many tensors and shards, which is all holes.

    What is small of it is written as safetensors, too.
    """
    home = folder / f"{tensors}-tensors-{shards}-shards"
    if not home.exists():
        _run("benchmarks.synthetic", str(tensors), str(shards), str(home))
    path = home / ("pytorch_model.bin" if shards == 1 else "pytorch_model.bin.index.json")
    return _with(target(path), path, *SMALL)


def _with(converted: Path, source: Path, *options: str) -> Path:
    if not converted.exists():
        convert = ("cgpt_convert", "convert", str(source), "-o", str(converted))
        _run(*convert, "--no-proof", *options)
    return source


def _run(*arguments: str) -> None:
    measure.run([sys.executable, "-m", *arguments])

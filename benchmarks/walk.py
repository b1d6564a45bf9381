"""Count the functions and modules that one contiguous tensor enters in a conversion.

    python -m benchmarks.walk [--root CHECKOUT] [--list]

Each conversion runs in a process of its own, in which the modules of the package are imported
already, except those for URLs, under `sys.setprofile`. Three numbers are counted, without
provenance metadata:

command what a conversion of a small file enters in `cli/`: options, notes, the printed result
whole   what it enters below the command line, where a call of `cgpt_convert.convert` begins
tensor  what is called more often if the file contains more tensors: the way of a tensor itself

To safetensors, the files contain one tensor and two; to GGUF, which stores whole models, they are
models of one layer and two. Functions are those with a name: no lambdas and no comprehensions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

PACKAGE = "cgpt_convert"
APART = ("__main__", "harness", "lm_eval_plugin")  # other programs
REMOTE = ("remote", "remote_sink", "object_stage")
TARGETS = {"safetensors": (), "gguf": ("--no-vocab",)}


class Walk(NamedTuple):
    """Functions that were called, each as its module and its name."""

    functions: frozenset[tuple[str, str]]

    @property
    def modules(self) -> list[str]:
        return sorted({module for module, _ in self.functions})


class Walks(NamedTuple):
    command: Walk
    whole: Walk
    tensor: Walk


def walks(target: str, folder: Path, root: Path) -> Walks:
    """Convert two files that are made in `folder`, with the package that is in `root`."""
    options = ("--no-proof", *TARGETS[target])
    few, more = (
        calls(["convert", str(path), "-o", f"{path}.{target}", *options], root)
        for path in _sources(target, folder)
    )
    command = frozenset(call for call in few if call[0].split(".")[0] == "cli")
    return Walks(Walk(command), Walk(frozenset(few) - command), Walk(frozenset(more - few)))


def calls(words: list[str], root: Path) -> Counter[tuple[str, str]]:
    """Run a command in a process of its own, and count the calls of each function."""
    command = [sys.executable, __file__, "--child", str(root), *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    counted = json.loads(done.stdout.splitlines()[-1])
    return Counter({(module, name): count for module, name, count in counted})


def _sources(target: str, folder: Path) -> list[Path]:
    import torch

    from tests.helpers import vendor

    paths = []
    for number in (1, 2):
        home = folder / f"{target}-{number}"
        if target == "gguf":
            shape = vendor.Shape(number, 64, 4, 256, 256, 128)
            paths.append(vendor.write(shape, home))
            vendor.write_config(shape, home)
        else:
            home.mkdir()
            state = {f"w{at}": torch.arange(12.0).view(3, 4) + at for at in range(number)}
            paths.append(vendor.save(state, home / "pytorch_model.bin"))
    return paths


def _child(root: str, words: list[str]) -> None:
    """Run a command with every module imported; print the calls of each function as JSON."""
    sys.path.insert(0, root)
    home = os.path.join(root, PACKAGE) + os.sep
    for module in pkgutil.walk_packages([home], f"{PACKAGE}."):
        if not {*module.name.split(".")[1:]} & {*APART, *REMOTE}:
            importlib.import_module(module.name)
    counted: Counter[tuple[str, str]] = Counter()

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(home) and code.co_name[0] != "<":
            name = getattr(code, "co_qualname", f"{code.co_name}:{code.co_firstlineno}")
            counted[code.co_filename[len(home) : -len(".py")].replace(os.sep, "."), name] += 1

    main: Callable[[], int] = importlib.import_module(f"{PACKAGE}.cli").main
    sys.argv = ["cgpt-convert", *words]
    threading.setprofile(profile)
    sys.setprofile(profile)
    code = main()
    sys.setprofile(None)
    print(json.dumps([[*function, count] for function, count in counted.items()]))
    sys.exit(code)


def _table(measured: Iterable[tuple[str, Walks]]) -> str:
    rows = [f"{'':12} " + "  ".join(f"{kind:>24}" for kind in Walks._fields)]
    for target, both in measured:
        cells = (f"{len(w.functions):>4} functions in {len(w.modules):>2}" for w in both)
        rows.append(f"{target:12} " + "  ".join(f"{cell:>24}" for cell in cells))
    return "\n".join(rows)


def main() -> None:
    """Do what the command line asks for."""
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walk", description=__doc__)
    here = Path(__file__).parents[1]
    parser.add_argument("--root", type=Path, default=here, help="another checkout, to compare with")
    parser.add_argument("--list", action="store_true", help="also list the functions")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.root.resolve()
        measured = {target: walks(target, Path(folder), root) for target in TARGETS}
    print(_table(measured.items()))
    for target, both in measured.items() if options.list else ():
        for kind, walk in both._asdict().items():
            print(f"\n{target}, {kind}")
            for module in walk.modules:
                print(f"  {module}:", *sorted(name for m, name in walk.functions if m == module))


if __name__ == "__main__":
    main()

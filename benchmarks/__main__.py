"""Measure this package beside `cp`, torch, unzip and llama.cpp, and write the page about it.

    python -m benchmarks

Checkpoints are made where --dir does not have them yet. What was measured is kept in the file of
results, in which a row takes the place of an older one of the same name; the page and its plots are
made from all of them. So a part may be measured today, and another tomorrow.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.groups import TENSORS, groups
from benchmarks.results import load
from benchmarks.session import Measuring, Wish


def main() -> None:
    """Do what the command line asks for."""
    options = _parser().parse_args()
    sizes = options.sizes.split(",")
    if options.list:
        for group in groups(sizes, options.tensors):
            print(*(f"{group.size}/{group.kind}/{task.name}" for task in group.tasks), sep="\n")
        return
    results = load(options.results)
    if not options.render:
        with ExitStack() as stack:
            measuring = Measuring(
                _wish(options, stack), results, lambda: results.save(options.results)
            )
            measuring.run(groups(sizes, options.tensors))
    from benchmarks import page  # it takes memory, which the measured processes inherit

    page.write(load(options.results), options.output)  # what is kept, which is rounded


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add(
        "--results",
        type=Path,
        default="docs/explanation/measurements.json",
        help="the JSON file that results are kept in",
    )
    add(
        "--output",
        type=Path,
        default="docs/explanation/measurements.md",
        help="the page; plots beside it",
    )
    add("--sizes", default="111M,1.3B,2.7B", help="models of tests.helpers.vendor, by comma")
    add("--tensors", type=int, default=max(TENSORS), help="the most, where numbers grow")
    add("--runs", type=int, default=5, help="of each; fewer of what is large, more of what is not")
    add("--only", action="append", metavar="GLOB", help="names as --list gives (repeatable)")
    add("--missing", action="store_true", help="only what there is no result of yet")
    add("--dir", type=Path, help="where checkpoints are kept; else they are not")
    add("--scratch", type=Path, help="where outputs are written, and only what writes is run")
    add("--render", action="store_true", help="measure nothing: only write the page")
    add("--list", action="store_true", help="print all names, and do nothing")
    return parser


def _wish(options: argparse.Namespace, stack: ExitStack) -> Wish:
    """What the options say, with folders that exist."""

    def temporary(parent: Path | None) -> Path:
        if parent:
            parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix="benchmarks-", dir=parent)
        return Path(stack.enter_context(made))

    outputs = temporary(options.scratch or options.dir)
    folder = options.dir or temporary(None)
    only = options.only or ["*"]
    tidy, writing = options.dir is None, options.scratch is not None
    return Wish(options.runs, only, options.missing, folder, tidy, outputs, writing)


if __name__ == "__main__":
    main()

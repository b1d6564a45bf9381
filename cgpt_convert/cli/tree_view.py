"""Tensor rows grouped by module, with subtotals; identical layers share one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cgpt_convert.cli import style
from cgpt_convert.cli.statistics_columns import COLUMNS, cells_of
from cgpt_convert.cli.table import size, table
from cgpt_convert.core.text import printable
from cgpt_convert.tensors.shapes import dims

_BAR = ""  # the header of the column of bars
_LEAST_SHARE = 0.001
_DEEPEST = 40  # limit of nested modules; the rest of a longer name is not split


@dataclass(slots=True)
class _Node:
    numel: int = 0
    nbytes: int = 0
    dtype: str = ""
    shape: str = ""
    tied: bool = False
    stats: list[dict[str, Any]] = field(default_factory=list)  # of the tensors in it
    children: dict[str, _Node] = field(default_factory=dict)

    def look(self) -> tuple[object, ...]:
        """Return the properties that two layers must share to be merged."""
        inner = tuple((key, child.look()) for key, child in self.children.items())
        not_finite = any(stats["nan"] or stats["inf"] for stats in self.stats)
        return (self.dtype, self.shape, self.tied, not_finite, inner)

    def merge(self, other: _Node) -> None:
        """Let the statistics cover those of a node that looks the same."""
        self.stats += other.stats
        for mine, its in zip(self.children.values(), other.children.values(), strict=True):
            mine.merge(its)


def tree_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the tree. Subtotals count a tied tensor where it first appears.

    Statistics of layers that share a line cover all of them. Statistics of a module cover
    no integers and booleans, because masks and indices would hide the weights.
    """
    root = _Node()
    for row in rows:
        node = root
        numel = 1
        for dim in row["shape"]:
            numel *= dim
        tied = row["tied_to"] is not None
        whole = row["dtype"].startswith(("int", "uint", "bool"))
        path = [root]
        for part in row["name"].split(".", _DEEPEST):
            node = node.children.setdefault(part, _Node())
            path.append(node)
        node.dtype, node.tied = row["dtype"], tied
        node.shape = dims(row["shape"])
        for step in path:
            step.numel += 0 if tied else numel
            step.nbytes += 0 if tied else row["nbytes"]
            if "stats" in row and (step is node or not (tied or whole)):
                step.stats.append(row["stats"])
    lines: list[list[str]] = []
    with_stats = "stats" in rows[0] if rows else False
    _add(lines, root, 0, root.nbytes, with_stats)
    lines.append(["total", "", *_cells(root, root.nbytes, with_stats)])
    header = ["module", "tensor", "size", *COLUMNS]
    optional = ["zeros", "mean", "std", "tensor", "distribution", "size"]
    if not with_stats:
        header = ["module", "tensor", "elements", "size", "share", _BAR]
        optional = ["elements", "tensor", _BAR, "share"]
    return table(header, lines, ("elements", "size", "share", *COLUMNS[1:]), optional)


def _add(lines: list[list[str]], node: _Node, depth: int, total: int, with_stats: bool) -> None:
    for names, child in _folded(node):
        label = printable(names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} (each)")
        while len(names) == 1 and len(child.children) == 1 and not child.dtype:
            ((only, child),) = child.children.items()  # noqa: PLW2901  one line for the chain
            label += f".{printable(only)}"
        what = f"{child.dtype} {child.shape}" if child.dtype else ""
        if len(names) > 1:
            what = f"{len(names)} alike"
        if child.tied:
            what += " (tied)"
        lines.append(["  " * depth + label, what.strip(), *_cells(child, total, with_stats)])
        _add(lines, child, depth + 1, total, with_stats)


def _cells(node: _Node, total: int, with_stats: bool) -> list[str]:
    if with_stats:
        from cgpt_convert.tensors.stats import combined

        return [size(node.nbytes), *cells_of(combined(node.stats))]
    share = node.nbytes / total if total else 0
    percent = f"{share:.1%}" if share >= _LEAST_SHARE else "<0.1%" if share else ""
    count = f"{node.numel:,}" if node.numel else ""
    return [count, size(node.nbytes), percent, style.bar(share)]


def _folded(node: _Node) -> list[tuple[list[str], _Node]]:
    """Return the children, with runs of identical numbered ones merged."""
    groups: list[tuple[list[str], _Node]] = []
    for name, child in node.children.items():
        previous = groups[-1] if groups else None
        if (
            previous
            and name.isdigit()
            and previous[0][-1].isdigit()
            and child.look() == previous[1].look()
        ):
            previous[0].append(name)
            previous[1].merge(child)
        else:
            groups.append(([name], child))
    return groups

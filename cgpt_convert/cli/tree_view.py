"""Tensor rows grouped by module, with subtotals; identical layers share one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cgpt_convert.cli.table import size, table
from cgpt_convert.core.text import printable
from cgpt_convert.tensors.shapes import dims

_DEEPEST = 40  # limit of nested modules; the rest of a longer name is not split


@dataclass(slots=True)
class _Node:
    numel: int = 0
    nbytes: int = 0
    dtype: str = ""
    shape: str = ""
    tied: bool = False
    children: dict[str, _Node] = field(default_factory=dict)

    def look(self) -> tuple[object, ...]:
        """Return the properties that two layers must share to be merged."""
        inner = tuple((key, child.look()) for key, child in self.children.items())
        return (self.dtype, self.shape, self.tied, inner)


def tree_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the tree. Subtotals count a tied tensor where it first appears."""
    root = _Node()
    for row in rows:
        node = root
        numel = 1
        for dim in row["shape"]:
            numel *= dim
        tied = row["tied_to"] is not None
        path = [root]
        for part in row["name"].split(".", _DEEPEST):
            node = node.children.setdefault(part, _Node())
            path.append(node)
        node.dtype, node.tied = row["dtype"], tied
        node.shape = dims(row["shape"])
        for step in path:
            step.numel += 0 if tied else numel
            step.nbytes += 0 if tied else row["nbytes"]
    lines: list[list[str]] = []
    _add(lines, root, 0)
    lines.append(["total", "", f"{root.numel:,}", size(root.nbytes)])
    return table(["module", "tensor", "elements", "size"], lines, right=["elements", "size"])


def _add(lines: list[list[str]], node: _Node, depth: int) -> None:
    for names, child in _folded(node):
        label = printable(names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}")
        while len(names) == 1 and len(child.children) == 1 and not child.dtype:
            ((only, child),) = child.children.items()  # noqa: PLW2901  one line for the chain
            label += f".{printable(only)}"
        what = f"{child.dtype} {child.shape}" if child.dtype else ""
        if len(names) > 1:
            what = f"{len(names)} alike, each:"
        if child.tied:
            what += " (tied)"
        count = f"{child.numel:,}" if child.numel else ""
        lines.append(["  " * depth + label, what.strip(), count, size(child.nbytes)])
        _add(lines, child, depth + 1)


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
        else:
            groups.append(([name], child))
    return groups

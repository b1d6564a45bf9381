"""Measure the layout of the package: imports between its parts, names, and docstrings.

    python -m benchmarks.layout [--root CHECKOUT]

A room (a top-level part) is a package or a module directly in `cgpt_convert`, except `__init__` and
`__main__`. An import counts wherever it is in a module, unless it is for type checkers only.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = "cgpt_convert"
SMALL = 60  # lines
# each is what it is called in every package or folder of its kind
SHARED_NAMES = ("__init__", "__main__", "reader", "writer")


def measure(root: Path) -> dict[str, int]:
    """Return the figures of the package in `root`, by what they count."""
    home = root / PACKAGE
    paths = {path: path.read_text() for path in sorted(home.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in paths.items()}
    modules = {path: _dotted(path, home) for path in paths}
    rooms = {name.partition(".")[0] for name in modules.values()} - {"", "__main__"}
    loose = [path for path in home.glob("*.py") if not path.stem.startswith("__")]
    arrows = {
        (modules[path].partition(".")[0], target)
        for path, tree in trees.items()
        for target in _imported(tree, rooms)
    }
    arrows = {(one, other) for one, other in arrows if one in rooms and one != other}
    levels, circles = _levels(rooms, arrows)
    code = [path for path in paths if path.stem != "__init__"]
    files = Counter(path.stem for path in code if path.stem not in SHARED_NAMES)
    classes = Counter(
        node.name.lstrip("_")
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    docstrings = [text for tree in trees.values() for text in _docstrings(tree)]
    return {
        "top-level packages and modules": len(rooms),
        "levels": levels,
        "imports between them": len(arrows),
        "circular imports": circles,
        "loose modules at the top": len(loose),
        "modules": len(code),
        f"modules of fewer than {SMALL} lines": sum(
            len(paths[path].splitlines()) < SMALL for path in code
        ),
        "lines": sum(len(text.splitlines()) for text in paths.values()),
        "file names that occur more than once": sum(count > 1 for count in files.values()),
        "class names that occur more than once": sum(count > 1 for count in classes.values()),
        'docstrings that begin with "What"': sum(text.startswith("What") for text in docstrings),
        "docstrings that are questions": sum(
            text.partition("\n")[0].endswith("?") for text in docstrings
        ),
    }


def _dotted(path: Path, home: Path) -> str:
    parts = path.relative_to(home).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(node: ast.AST, rooms: set[str]) -> Iterator[str]:
    """Yield the rooms that a module imports from, anywhere in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom) and child.module == PACKAGE:
            yield from (alias.name for alias in child.names if alias.name in rooms)
        elif isinstance(child, ast.ImportFrom) and (child.module or "").startswith(f"{PACKAGE}."):
            yield (child.module or "").split(".")[1]
        else:
            yield from _imported(child, rooms)


def _levels(rooms: set[str], arrows: set[tuple[str, str]]) -> tuple[int, int]:
    """Return the number of levels, and that of groups of rooms that import each other."""
    below = {room: {other for one, other in arrows if one == room} for room in rooms}
    reach = {room: _reachable(room, below) for room in rooms}
    groups = {frozenset({o for o in reach[r] if r in reach[o]} | {r}) for r in rooms}
    heights: dict[frozenset[str], int] = {}

    def height(group: frozenset[str]) -> int:
        if group not in heights:
            lower = {other for room in group for other in below[room]} - group
            under = [height(each) for each in groups if each & lower]
            heights[group] = 1 + max(under, default=0)
        return heights[group]

    return max(map(height, groups)), sum(len(group) > 1 for group in groups)


def _reachable(room: str, below: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = [room]
    while todo:
        todo += (new := below[todo.pop()] - found)
        found |= new
    return found


def _docstrings(tree: ast.Module) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            text = ast.get_docstring(node)
            if text:
                yield text


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layout", description=__doc__)
    here = Path(__file__).parents[1]
    parser.add_argument("--root", type=Path, default=here, help="another checkout, to compare with")
    for what, count in measure(parser.parse_args().root.resolve()).items():
        print(f"{count:>7,} {what}")


if __name__ == "__main__":
    main()

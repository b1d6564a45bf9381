"""A name has one meaning: no class name and no module name occurs twice in the package."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import cgpt_convert

PACKAGE = Path(cgpt_convert.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Module names that occur more than once, and why.
REPEATED_MODULES = {
    "__init__": "Python's name for a package",
    "reader": "in a format's folder: its reader",
    "writer": "in a format's folder: its writer; in `writing`: the writer of every format's plan",
}

# Modules that are imported under another name, always their folder's and their own, and why.
ALIASES = {
    "architectures.gpt2.hyperparameters": "the importing module offers a function of its name",
    "formats.gguf.reader": "imported together with another reader",
    "formats.safetensors.reader": "imported together with another reader",
    "formats.npy.folder": "its test has a function of that name",
    "formats.npz.archive": "its test has a function of that name",
    "formats.open": "its name is that of a built-in function",
    "inference.compare": "imported together with its function of that name",
}


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_no_class_name_occurs_twice() -> None:
    classes = defaultdict(list)
    for path in MODULES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ClassDef):
                classes[node.name.lstrip("_")].append(str(path.relative_to(PACKAGE)))
    assert classes["Checkpoint"] == ["checkpoint.py"]
    assert not {name: paths for name, paths in classes.items() if len(paths) > 1}


def test_no_module_name_occurs_twice() -> None:
    modules = defaultdict(list)
    for path in MODULES:
        modules[path.stem].append(str(path.relative_to(PACKAGE)))
    assert {name for name, paths in modules.items() if len(paths) > 1} == REPEATED_MODULES.keys()


def _is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def _module_aliases(path: Path) -> Iterator[tuple[str, str]]:
    """The modules of this package that a file imports under another name, and that name."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                if alias.asname and _is_module(dotted):
                    yield dotted.removeprefix(f"{PACKAGE.name}."), alias.asname


def test_modules_are_imported_under_their_own_names() -> None:
    found = {
        dotted: name
        for folder in ("cgpt_convert", "tests", "fuzz", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for dotted, name in _module_aliases(path)
    }
    assert found == {dotted: "_".join(dotted.split(".")[-2:]) for dotted in ALIASES}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from cgpt_convert.tensors import read as blocks", [("tensors.read", "blocks")]),
        ("from cgpt_convert.tensors import read", []),
        ("from cgpt_convert.sources.local import read as read_bytes", []),
    ],
)
def test_only_an_alias_of_a_module_counts(
    line: str, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"def load():\n    {line}\n")
    assert list(_module_aliases(path)) == expected

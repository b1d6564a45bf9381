"""No text that users see has a word or phrase that readers of simple English do not expect."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cgpt_convert

PACKAGE = Path(cgpt_convert.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# pattern, between word boundaries -> what to write instead
BANNED = {
    # old or unusual words
    "learnt": "learned, trained",
    "besides": "also, in addition",
    "to and fro": "in both directions",  # codespell:ignore fro
    "as ever": "as before",
    "who(so)?ever": "anyone who",
    "somebody('s)?|nobody": "name the actor",
    "faster it is not": "this is not faster",
    "so many": "the number",
    "tells|(is|be) told": "says, shows, reports",
    "lies|lay": "is stored, is",
    "in vain": "without use",
    "journeys?|travels?": "is downloaded, is requested",
    "comes along": "is included, bundled",
    "likeliest": "most likely",
    # other words for the normal ones
    "refuse[sd]?|refusing": "rejects, rejected",
    "claims?|claimed": "provenance metadata; says",
    "put in C order": "made contiguous",
    "left out|leaves? out": "skipped",
    "(holds?|held) (no|none|nothing)": "contains no",
    "(which|that) (is|are) not read": "not supported",
    "(looks?|looking) into": "inspects, scans",
    "(comes?|is there|are there) twice": "occurs twice",
    "cut off": "truncated",
    "say --": "pass --, use --",
    "name (it|the one|one)": "pass the path",
    # inversions and genitives in place of a plain sentence
    "of such( a)?( name)?": "with this name",
    "nothing of (it|them)": "no part of it",
    "(is|are) none": "is not valid, does not exist",
    "(?<!there )(is|are) no(?! longer| more)": "is not a",
    "has not": "does not have, lacks",
    "of no known": "unknown",
    "one an? (core|storage|tensor)": "one per",
}
_PATTERN = re.compile(
    "|".join(rf"(?<![\w-])(?:{phrase})(?![\w-])" for phrase in BANNED), re.IGNORECASE
)


# values of JSON output, which do not change
KEPT = {"left out"}


def texts(source: str) -> Iterator[tuple[int, str]]:
    """The line and the text of every string with a blank in it that is not a docstring.

    The parts of an f-string are joined, with `{}` for each of its values.
    """
    tree = ast.parse(source)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant() as docstring):
                skipped.add(id(docstring))
            case ast.JoinedStr(values=parts):
                skipped.update(map(id, parts))
                shown = (p.value if isinstance(p, ast.Constant) else "{}" for p in parts)
                yield node.lineno, "".join(map(str, shown))
            case ast.Constant(value=str(text)) if id(node) not in skipped and " " in text.strip():
                yield node.lineno, text


def faults(source: str) -> list[str]:
    """The banned phrases of a module's texts, each with its line and its text."""
    return [
        f"line {line}: {fault[0]!r} in {text!r}"
        for line, text in texts(source)
        if text not in KEPT
        for fault in _PATTERN.finditer(text)
    ]


@pytest.mark.parametrize("module", MODULES)
def test_what_users_read_is_in_plain_words(module: str) -> None:
    assert faults((PACKAGE / module).read_text(encoding="utf-8")) == []


def test_banned_words_are_found() -> None:
    source = '''
"""A module that tells."""
LIES = "lies"
raise ValueError("the file holds " "no tensors")
print(f"{name} is there twice; {other!r} lies in {place} and is " f"refused, {reason}")
print("it belies its name, so many-core machines refused-looking")
def function():
    """Say what is left out."""
'''
    assert faults(source) == [
        "line 4: 'holds no' in 'the file holds no tensors'",
        "line 5: 'is there twice' in '{} is there twice; {} lies in {} and is refused, {}'",
        "line 5: 'lies' in '{} is there twice; {} lies in {} and is refused, {}'",
        "line 5: 'refused' in '{} is there twice; {} lies in {} and is refused, {}'",
    ]

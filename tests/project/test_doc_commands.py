"""Every command and every line of Python in the documentation runs and prints what is shown."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.console import BLOCK, Shell, agrees, demo_run, run_page, servers
from tests.helpers.running import ROOT, environ

PAGES = {path.name: path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return demo_run(tmp_path_factory.mktemp("demo"))


# a page that imports one of these, or shows how to read from S3, is for the slow tests
HEAVY_PAGE = re.compile(r"^> (?:import|from)\b.*\b(?:torch|transformers)\b|s3://", re.MULTILINE)
SHOWN = [
    pytest.param(name, marks=pytest.mark.slow if HEAVY_PAGE.search(page.read_text()) else ())
    for name, page in PAGES.items()
    if BLOCK.search(page.read_text())
]


@pytest.mark.parametrize("name", SHOWN)
def test_commands_print_what_the_page_shows(
    name: str, demo: tuple[Path, str], tmp_path: Path
) -> None:
    """`python -m tests.helpers.console PAGE` writes the real output into the page."""
    page = PAGES[name]
    with servers(page, demo[0], tmp_path) as extra:
        for step, printed in run_page(page.read_text(), Shell(tmp_path, demo, extra)):
            assert agrees(step.output, printed), f"{step.shown}{printed}"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\n", "a\nb\n", False),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nd\n", "a\nb\nc\n", False),
        ("in ... s\n", "in 0.25 s\n", True),
        ("in ... s\n", "in 0.25 s\nor so\n", False),
        ("a.c\n", "abc\n", False),
        ("", "", True),
        ("", "warning\n", False),
    ],
)
def test_outputs_are_compared_exactly_but_for_dots(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) == same


def test_a_command_that_fails_must_show_its_exit_code(
    demo: tuple[Path, str], tmp_path: Path
) -> None:
    page = "```console\n$ false\n$ echo $?\n1\n```\n\n```console\n$ false\n```\n"
    results = run_page(page, Shell(tmp_path, demo, {}))
    assert [printed for _, (_, printed) in zip(range(2), results, strict=False)] == ["", "1\n"]
    with pytest.raises(AssertionError, match="exit code 1"):
        next(results)


def test_the_picture_shows_what_the_program_prints(tmp_path: Path) -> None:
    """`python docs/picture.py` draws it anew."""
    made = tmp_path / "picture.svg"
    subprocess.run([sys.executable, ROOT / "docs" / "picture.py", made], env=environ(), check=True)
    assert made.read_text() == (ROOT / "docs" / "picture.svg").read_text()


def test_the_python_of_a_page_runs(demo: tuple[Path, str], tmp_path: Path) -> None:
    page = ROOT / "docs" / "how-to" / "use-from-python.md"
    shutil.copytree(demo[0], tmp_path / "cgpt-demo")
    shutil.copy(page, tmp_path)
    line = [sys.executable, "-m", "doctest", "-o", "ELLIPSIS", page.name]
    done = subprocess.run(
        line, cwd=tmp_path, env=environ(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

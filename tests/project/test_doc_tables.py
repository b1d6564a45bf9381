"""Tables of the documentation fit what they are made from, and its blocks are of known kinds."""

import re
from pathlib import Path

import click
import pytest

from cgpt_convert.cli import COMMANDS, group
from tests.helpers import option_tables
from tests.helpers.running import ROOT

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
DOCS = {path.name: path.read_text() for path in PAGES}


def test_the_option_tables_are_those_of_the_help() -> None:
    """`python -m tests.helpers.option_tables` writes them."""
    assert set(re.findall(r"<!-- options: (\w+) -->", DOCS["commands.md"])) == set(COMMANDS)
    assert option_tables.filled(DOCS["commands.md"]) == DOCS["commands.md"]


@pytest.mark.parametrize("path", [*ROOT.glob("mappings/*/*.toml")], ids=lambda path: path.name)
def test_every_key_of_the_mapping_files_is_documented(path: Path) -> None:
    text = re.sub(r"^ *#.*", "", path.read_text(), flags=re.MULTILINE)
    keys = re.findall(r"^([a-z_]+) =", text, re.MULTILINE)
    tables = re.findall(r"^\[+([a-z_]+)", text, re.MULTILINE)
    assert len(keys) > 5
    sizes = {"n_layer", "n_embd", "n_inner", "n_positions", "vocab_size", "n_head"}
    for key in {*keys, *tables} - sizes - {"size", "end", "config"}:
        assert re.search(rf"`(config\.)?{key}`", DOCS["mapping-toml.md"]), key


def test_the_scores_of_the_comparison_are_those_of_the_scoreboard() -> None:
    rows = re.findall(r"^\| \S+ .*\| \d+ \| \d+ \| \d+ \|$", DOCS["comparison.md"], re.MULTILINE)
    assert len(rows) == 4
    for row in rows:
        assert row in DOCS["scoreboard.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_examples_exist(page: Path) -> None:
    """Also in blocks that are not run, such as workflows."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())  # lines that go on
    for name, words in re.findall(r"cgpt-convert ([a-z]+)\b([^`|\n]*)", text):
        if name in COMMANDS:
            each = group.get_command(click.Context(group), name)
            assert each is not None
            exist = {spelling for param in each.params for spelling in param.opts}
            for spelling in re.findall(r"(?<!\S)--?[a-z][a-z-]*", words):
                assert spelling in exist | {"--help", "-h"}, f"cgpt-convert {name}{words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_are_of_a_kind_that_something_checks(page: Path) -> None:
    """`console`, `pycon` and `python` are run; `sh` shows no output, and is for other programs."""
    kinds = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)[::2]
    assert set(kinds) <= {"console", "pycon", "python", "sh", "yaml", "toml", "json", "text"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # it speaks of what there was
        return
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|toml|txt))`", page.read_text()):
        if "NAME" not in name:
            assert (ROOT / name).exists() or (ROOT / "cgpt_convert" / name).exists(), name

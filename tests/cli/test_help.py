"""The mechanical part of how help texts are written, over every command and option."""

from __future__ import annotations

import importlib
import re

import click
import pytest

from cgpt_convert.cli import COMMANDS, group

MOST = 100  # characters of an option's help
# what neither a verb in the imperative nor a noun begins with
OPENINGS = {
    *("A", "All", "An", "And", "Any", "As", "At", "By", "Does", "For", "From", "How", "If", "In"),
    *("Is", "It", "No", "Not", "Of", "On", "Only", "Or", "Please", "Say", "So", "Than", "That"),
    *("The", "Then", "There", "This", "To", "What", "When", "Where", "Whether", "Which", "Who"),
    *("Whose", "Why", "With", "You"),
}
# words and turns that readers of English as a second language have to look up
ARCHAIC = re.compile(
    r"\b(besides|learnt|whoever|whatever|likeliest|say \w+/|as ever|lies|tells|somebody|"
    r"claim|go on|goes on|of such|this very|put in C order|a token\b)",
    re.IGNORECASE,
)
OPTIONS = {
    f"{name} {param.opts[-1]}": param
    for name in COMMANDS
    for param in importlib.import_module(f"cgpt_convert.cli.{name}").command.params
    if isinstance(param, click.Option)
}


def command(name: str) -> click.Command:
    """The command of the name."""
    each: click.Command = importlib.import_module(f"cgpt_convert.cli.{name}").command
    return each


def faults(text: str) -> list[str]:
    """What is wrong with a help text, whose default in brackets counts for nothing but length."""
    sentence = re.sub(r"\s*\[default: [^\]]*\]$", "", text)
    opening = re.match(r"[\w-]*", sentence)
    found = []
    if len(text) > MOST:
        found.append(f"{len(text)} characters")
    if not sentence.endswith("."):
        found.append("no full stop")
    if not opening or not opening[0][:1].isupper() or opening[0] in OPENINGS:
        found.append("begins with neither a verb nor a noun")
    if ARCHAIC.search(sentence):
        found.append("a word to look up")
    return found


@pytest.mark.parametrize("option", OPTIONS)
def test_options_have_a_short_plain_help(option: str) -> None:
    assert faults(OPTIONS[option].help or "") == []


@pytest.mark.parametrize("option", OPTIONS)
def test_options_with_a_default_name_it(option: str) -> None:
    """A flag is off, an option that may be given several times is empty: that needs no words."""
    param = OPTIONS[option]
    shown = param.get_help_record(click.Context(command(option.split(maxsplit=1)[0])))
    assert shown is not None
    if not param.is_flag and isinstance(param.default, str | int | float):
        assert "[default: " in shown[1]


@pytest.mark.parametrize("option", OPTIONS)
def test_options_name_their_value_in_one_word(option: str) -> None:
    """Not as INTEGER RANGE."""
    record = OPTIONS[option].get_help_record(click.Context(command(option.split(maxsplit=1)[0])))
    assert record is not None
    assert re.fullmatch(r"(-\w, )?--[a-z-]+( [A-Z.]+| \[[\w|-]+\])?", record[0])


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_have_a_plain_help(name: str) -> None:
    summary, _, rest = (command(name).help or "").partition("\n\n")
    assert faults(COMMANDS[name]) == []
    assert summary.endswith(".")
    assert re.match(r"[\w-]+", summary)[0] not in OPENINGS  # type: ignore[index]
    assert not ARCHAIC.search(summary + rest)


def test_the_program_has_a_plain_help() -> None:
    assert not ARCHAIC.search(group.help or "")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Print the result as JSON.", 0),
        ("Number of threads.  [default: one per CPU core]", 0),
        ("Where the tokenizer is.", 1),
        ("How long a server may say nothing", 2),
        ("gelu, gelu_new ...  [default: from config.json]", 1),
        ("Use " + "x" * MOST + ".", 1),
        ("", 2),
    ],
)
def test_faults_are_found(text: str, count: int) -> None:
    assert len(faults(text)) == count

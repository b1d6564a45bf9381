"""The option tables of docs/reference/commands.md, made from the help texts of the commands.

`python -m tests.helpers.option_tables` writes them into the page.
"""

import re

import click

from cgpt_convert.cli import group
from tests.helpers.running import ROOT

PAGE = ROOT / "docs" / "reference" / "commands.md"
_TABLE = re.compile(r"(<!-- options: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table(name: str) -> str:
    """The usage and the options of a command."""
    context = click.Context(group, info_name="cgpt-convert")
    command = group.get_command(context, name)
    assert command is not None
    inner = click.Context(command, info_name=name, parent=context)
    pieces = " ".join(command.collect_usage_pieces(inner))
    rows = [
        f"| {_code(option)} | {_cell(text)} |"
        for param in command.params
        for option, text in [param.get_help_record(inner) or ("", "")]
        if isinstance(param, click.Option)
    ]
    head = [f"    cgpt-convert {name} {pieces}", "", "| option | meaning |", "|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def filled(page: str) -> str:
    """The page with all tables made anew."""
    return _TABLE.sub(lambda match: f"{match[1]}\n{table(match[2])}\n", page)


def _code(option: str) -> str:
    *flags, last = option.split(", ")
    return ", ".join(f"`{_escaped(each)}`" for each in [*flags, last])


def _cell(text: str) -> str:
    """The text with its options and defaults marked."""
    text = re.sub(r"\s+", " ", _escaped(text))
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]*)", r"`\1`", text)


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))

"""Colours and symbols of the text output: the one module that decides whether they are used.

A command marks text by its meaning, and the text comes back unchanged where the output takes no
colour:

    click.echo(f"{style.verdict('dangerous', style.FAILED)}: {path}")
    click.echo(style.verdict("warning", style.WARNING, err=True) + ": ...", err=True)

Widths, wrapping and tables in `cli.table` do not count the colour codes, so mark first and wrap
afterwards. Escape text that comes from a file with `core.text.printable` before marking it.

Whether a stream takes colour, in this order, as in Python's own messages:
`NO_COLOR` (https://no-color.org) means no; `FORCE_COLOR` (https://force-color.org) means yes;
`TERM=dumb` means no; otherwise terminals take colour, and files and pipes do not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from cgpt_convert.core.checks import ERROR, FAILED, NOTE, PASSED

WARNING = "warning"
_HEIGHTS = " ▁▂▃▄▅▆▇█"
_ASCII_HEIGHTS = " .:-=+*#@"
_EIGHTHS = "▏▎▍▌▋▊▉"  # of a bar's column
_COLOURS = {PASSED: "green", NOTE: "cyan", WARNING: "yellow", FAILED: "red", ERROR: "red"}


def coloured(*, err: bool = False) -> bool:
    """Return whether standard output, or with `err` standard error, takes colour."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and (sys.stderr if err else sys.stdout).isatty()


def verdict(text: str, level: str, *, err: bool = False) -> str:
    """Return the text in the colour of `level`: PASSED, NOTE, WARNING, FAILED or ERROR.

    The last two are also bold. With `err` the text is for standard error. Where no command runs,
    print it by `click.echo(..., color=True)`; otherwise click removes the codes in pipes.
    """
    if not coloured(err=err):
        return text
    return click.style(text, fg=_COLOURS[level], bold=level in (FAILED, ERROR) or None)


def bold(text: str) -> str:
    """Return the text in bold, for headings on standard output."""
    return click.style(text, bold=True) if coloured() else text


def bar(share: float, width: int = 10) -> str:
    """Return a bar of at most `width` columns, of which it takes the given share."""
    if not _shows(_EIGHTHS):
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8 - 1 : eighths % 8]


def sparkline(counts: Sequence[int]) -> str:
    """Return one character for each count, as high as its share of the largest; space for 0."""
    heights = _HEIGHTS if _shows(_HEIGHTS) else _ASCII_HEIGHTS
    most = max(counts)
    return "".join(heights[-(-count * 8 // most)] for count in counts)


def ellipsis() -> str:
    """Return the mark for text that is not shown."""
    return "…" if _shows("…") else ".."


def encodable(text: str) -> str:
    """Return the text with escapes for characters that standard output cannot encode."""
    if text.isascii() or (encoding := _encoding()) == "utf-8":
        return text
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _shows(symbols: str) -> bool:
    """Return whether standard output can show the symbols.

    False if its encoding has no code for one of them, as in most Windows code pages, or if the
    user has chosen the C locale, in which Python itself writes UTF-8 all the same.
    """
    language = os.environ.get("LC_ALL") or os.environ.get("LANG")
    if language in ("C", "POSIX") and not os.environ.get("PYTHONIOENCODING"):
        return False
    return encodable(symbols) == symbols


def _encoding() -> str:
    return (sys.stdout.encoding or "ascii").lower()

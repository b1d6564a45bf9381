"""Text output: aligned tables and sizes, fitted to the terminal's width."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from cgpt_convert.cli import style

_ELLIPSIS = "…"
_THOUSAND = 1000
_SHORTEST = 16  # shorter names would not be recognisable
_CODE = re.compile(r"\x1b\[[0-9;]*m")  # of colour, as `cli.style` writes it
_WIDEST = 200  # maximum padding, so that one long name does not widen all lines


def width(*, err: bool = False) -> int | None:
    """Return the terminal's width; None if standard output, or with `err` error, is not one."""
    stream = sys.stderr if err else sys.stdout
    if not stream.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def counted(number: int, noun: str) -> str:
    """Return the number and the noun, which is plural unless the number is 1."""
    if number == 1:
        return f"1 {noun}"
    head, rest = noun, ""
    if " " in noun:  # "files of zeros"
        match = re.match(r"(.*?)( (?:of|that|older)\b.*|)$", noun)
        head, rest = match.groups() if match else (noun, "")
    return f"{number:,} {head}{'es' if head.endswith('x') else 's'}{rest}"


def size(nbytes: int) -> str:
    """Return the size with three digits and a power of 1000."""
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if round(value) < _THOUSAND:
            break
        value, unit = value / _THOUSAND, larger
    digits = f"{value:.3g}"
    return f"{value:.0f} {unit}" if "e" in digits else f"{digits} {unit}"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> list[str]:
    """Return the lines of the table. Columns in `right` are numbers; empty columns are omitted.

    On a narrow terminal the first column is cut in the middle, then columns are dropped from the
    end and named in a last line. Otherwise nothing is cut; a cell wider than 200 columns moves the
    rest of its line to the right.
    """
    every = list(zip(header, *rows, strict=True))
    keep = [i for i, cells in enumerate(every) if i == 0 or any(cells[1:])]
    widths = {i: max(map(columns, every[i])) for i in keep}
    room = width()
    dropped: list[str] = []
    if room is not None:
        while len(keep) > 1 and _shortened(widths, keep, room) < _SHORTEST:
            dropped.insert(0, header[keep.pop()])
        widths[0] = min(widths[0], max(_shortened(widths, keep, room), _SHORTEST))
        every[0] = tuple(cut(text, widths[0]) for text in every[0])
    filled = [_filled(every[i], min(widths[i], _WIDEST), header[i] in right) for i in keep]
    lines = ["  ".join(cells).rstrip() for cells in zip(*filled, strict=True)]
    lines[0] = style.bold(lines[0])
    if dropped:
        omitted = f"columns left out: {', '.join(dropped)}; a wider terminal or --json shows them"
        lines += wrapped(omitted).split("\n")
    return lines


def cut(text: str, most: int) -> str:
    """Return the text in at most `most` columns, shortened in the middle if necessary."""
    if columns(text) <= most:
        return text
    head = _beginning(text, (most - 1) // 2)
    tail = _beginning(text[::-1], most - 1 - columns(head))[::-1]
    return head + _ELLIPSIS + tail


def wrapped(text: str, indent: int = 0, *, err: bool = False) -> str:
    """Wrap the text to the terminal's width, with later lines indented.

    Lines break at spaces only. A word that is wider than the terminal gets a line of its own, so
    that it can be copied whole. With `err` the text is for standard error.
    """
    room = width(err=err)
    if room is None or columns(text) <= room:
        return text
    margin = " " * min(indent, room // 2)
    first, *words = text.lstrip().split(" ")
    lines = [text[: len(text) - len(text.lstrip())] + first]
    for word in words:
        if columns(lines[-1]) + 1 + columns(word) <= room:
            lines[-1] += " " + word
        elif word:
            lines.append(margin + word)
    return "\n".join(lines)


def columns(text: str) -> int:
    """Return the number of terminal columns of the text.

    East Asian wide characters take two columns, and colour codes none.
    """
    if "\x1b" in text:
        text = _CODE.sub("", text)
    return len(text) if text.isascii() else sum(map(_COLUMNS.__getitem__, text))


class _Columns(dict[str, int]):
    """The number of columns of each character, computed on first use."""

    def __missing__(self, char: str) -> int:
        import unicodedata

        wide = unicodedata.east_asian_width(char) in "WF"
        self[char] = 0 if unicodedata.category(char) in ("Mn", "Me") else 1 + wide
        return self[char]


_COLUMNS = _Columns()


def _beginning(text: str, most: int) -> str:
    """Return the longest start of the text that fits into `most` columns."""
    end = taken = 0
    while end < len(text) and taken + _COLUMNS[text[end]] <= most:
        taken += _COLUMNS[text[end]]
        end += 1
    return text[:end]


def _filled(cells: Sequence[str], most: int, right: bool) -> list[str]:
    """Pad the cells of one column to `most` columns."""
    pad = str.rjust if right else str.ljust
    if all(text.isascii() and "\x1b" not in text for text in cells):
        return [pad(text, most) for text in cells]
    return [pad(text, most - columns(text) + len(text)) for text in cells]


def _shortened(widths: dict[int, int], keep: list[int], room: int) -> int:
    """Return the part of `room` that is left for the first column."""
    return room - sum(widths[i] + 2 for i in keep if i)

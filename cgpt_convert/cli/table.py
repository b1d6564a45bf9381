"""Text for people: aligned tables, sizes, and as much of both as the terminal is wide."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

import click

_ELLIPSIS = "…"
_SHORTEST = 16  # a name cut shorter than this tells nothing


def width() -> int | None:
    """The terminal's width in characters; None where standard output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def style(text: str, **how: bool | str) -> str:
    """The text in colour or bold on a terminal that wants it (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return text
    return click.style(text, **how)  # type: ignore[arg-type]


def size(nbytes: int) -> str:
    """The size as people write it: powers of 1000, three digits."""
    if nbytes < 1000:
        return f"{nbytes} B"
    value = float(nbytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:.3g} {unit}"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> list[str]:
    """The lines of the table. Columns named in `right` are numbers; empty columns are left out.

    On a terminal too narrow the first column is cut in the middle, then columns go from the end.
    """
    keep = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    widths = {i: max(len(header[i]), *(len(row[i]) for row in rows), 0) for i in keep}
    room = width()
    if room is not None:
        while len(keep) > 1 and _shortened(widths, keep, room) < _SHORTEST:
            keep.pop()
        widths[0] = min(widths[0], max(_shortened(widths, keep, room), _SHORTEST))
    lines = []
    for number, row in enumerate((header, *rows)):
        cells = [
            f"{cut(row[i], widths[i]):{'>' if header[i] in right else '<'}{widths[i]}}"
            for i in keep
        ]
        line = "  ".join(cells).rstrip()
        lines.append(style(line, bold=True) if number == 0 else line)
    return lines


def cut(text: str, most: int) -> str:
    """The text in at most `most` characters, its middle left out if need be."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return text[:head] + _ELLIPSIS + text[len(text) - (most - 1 - head) :]


def _shortened(widths: dict[int, int], keep: list[int], room: int) -> int:
    """What is left of `room` for the first column."""
    return room - sum(widths[i] + 2 for i in keep if i)

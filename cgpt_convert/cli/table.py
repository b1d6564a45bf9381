"""Text output: aligned tables and sizes, fitted to the terminal's width."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from cgpt_convert.cli import style
from cgpt_convert.core.text import counted as counted  # noqa: PLC0414  for modules of `cli`

_THOUSAND = 1000
_SHORTEST = 24  # columns; a shorter part of a name says little
_CODE = re.compile(r"\x1b\[[0-9;]*m")  # of colour, as `cli.style` writes it
_WIDEST = 200  # maximum padding, so that one long name does not widen all lines


NO_BREAK = "\xa0"  # `printable` escapes it in texts from files


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
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str] = (),
    optional: Sequence[str] | None = None,
) -> list[str]:
    """Return the lines of the table. Columns in `right` are numbers; empty columns are omitted.

    On a narrow terminal, columns in `optional` are dropped, the first of them first, and named in
    the last line; by default all but the first two, from the end. If that is not enough, texts of
    the first column are shortened in the middle, unless two of them would look alike: then each
    has a line of its own, and the rest of its row follows on the next line.

    Elsewhere nothing is shortened; a cell wider than 200 columns moves the rest of its line to the
    right.
    """
    every = {
        name: [style.encodable(text) for text in cells]
        for name, *cells in zip(header, *rows, strict=True)
    }
    keep = [name for name, cells in every.items() if name == header[0] or any(cells)]
    room = width()
    if room is None:
        return _lines({name: every[name] for name in keep}, right)
    layout = _TableLayout(every, keep, list(header[:1:-1] if optional is None else optional), room)
    return layout.lines(right)


class _TableLayout:
    """A choice of columns for a terminal of `room` columns."""

    def __init__(
        self, every: dict[str, list[str]], keep: list[str], optional: list[str], room: int
    ) -> None:
        self.every, self.room = every, room
        self.first, *self.others = keep
        self.optional = [name for name in optional if name in self.others]
        self.widths = {name: _widest([name, *cells]) for name, cells in every.items()}

    def lines(self, right: Sequence[str]) -> list[str]:
        """Return the lines of the table in the first layout that fits."""
        names = self.every[self.first]
        # a longer name is shortened in any case, so that no column is dropped for it
        fitting = [most for most in map(columns, names) if most <= self.room]
        wanted = max([*fitting, columns(self.first)] if fitting else [self.room // 2])
        chosen = self.choose(wanted)
        left = self.room - sum(self.widths[name] + 2 for name in chosen)
        enough = min(_SHORTEST, self.widths[self.first])
        short = _distinct(names, left) if left >= enough else None
        if short is not None:
            lines = _lines({self.first: short} | {name: self.every[name] for name in chosen}, right)
            return lines + self.dropped(chosen)
        chosen = self.choose(0)
        rest = _lines({name: self.every[name] for name in chosen}, right) or [""] * (len(names) + 1)
        firsts = [style.bold(self.first), *(_distinct(names, self.room) or names)]
        lines = []
        for name, line in zip(firsts, rest, strict=True):
            lines += [name, f"  {line}"] if line.strip() else [name]
        return lines + self.dropped(chosen)

    def choose(self, first: int) -> list[str]:
        """Return the columns that fit beside a first column of that width, if possible."""
        left = self.room - first - sum(self.widths[name] + 2 for name in self.others)
        dropped = []
        for name in self.optional:
            if left < 0:
                dropped.append(name)
                left += self.widths[name] + 2
        for name in reversed(dropped[:]):  # a wide column may have made room for others
            if self.widths[name] + 2 <= left:
                dropped.remove(name)
                left -= self.widths[name] + 2
        return [name for name in self.others if name not in dropped]

    def dropped(self, chosen: list[str]) -> list[str]:
        """Return the lines that name the columns that are not shown, if any."""
        names = [name for name in self.others if name and name not in chosen]
        if not names:
            return []
        text = f"columns not shown: {', '.join(names)}; use a wider terminal or --json"
        return wrapped(text).split("\n")


def _lines(every: dict[str, list[str]], right: Sequence[str]) -> list[str]:
    """Return the lines of a table of these columns."""
    filled = [
        _filled([name, *cells], min(_widest([name, *cells]), _WIDEST), name in right)
        for name, cells in every.items()
    ]
    lines = ["  ".join(cells).rstrip() for cells in zip(*filled, strict=True)]
    return [style.bold(lines[0]), *lines[1:]] if lines else []


def _widest(texts: Sequence[str]) -> int:
    return max(map(columns, texts))


def _distinct(texts: list[str], most: int) -> list[str] | None:
    """Return the texts, each in at most `most` columns; None if different ones would look alike."""
    for head in (1 / 2, 1 / 3, 2 / 3, 1 / 5, 4 / 5):
        short = [cut(text, most, head) for text in texts]
        if len(set(short)) == len(set(texts)):
            return short
    return None


def cut(text: str, most: int, head: float = 1 / 2) -> str:
    """Return the text in at most `most` columns, shortened in the middle if necessary.

    `head` is the share of its beginning in what is left.
    """
    if columns(text) <= most:
        return text
    mark = style.ellipsis()
    beginning = _beginning(text, int((most - len(mark)) * head))
    end = _beginning(text[::-1], most - len(mark) - columns(beginning))[::-1]
    return beginning + mark + end


def wrapped(text: str, indent: int = 0, *, err: bool = False) -> str:
    """Wrap the text to the terminal's width, with later lines indented.

    Lines break at spaces only. A word that is wider than the terminal gets a line of its own, so
    that it can be copied whole. A no-break space becomes a space at which no line breaks. With
    `err` the text is for standard error.
    """
    text = text if err else style.encodable(text)
    return _broken(text, indent, width(err=err)).replace(NO_BREAK, " ")


def _broken(text: str, indent: int, room: int | None) -> str:
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

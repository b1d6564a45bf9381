"""Text that is safe to print or to show as HTML, and words for numbers and typing errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cgpt_convert.core.errors import BadRequest


class _Escapes(dict[int, str]):
    """A `str.translate` table of printable forms, filled on demand."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = char if char.isprintable() else ascii(char)[1:-1]
        return self[code]


_ESCAPES = _Escapes()


def printable(text: str) -> str:
    """Return `text` with control, formatting and other unprintable characters escaped."""
    if text.isprintable():
        return text
    return text.translate(_ESCAPES)


def counted(number: int, noun: str) -> str:
    """Return the number and the noun, which is plural unless the number is 1."""
    if number == 1:
        return f"1 {noun}"
    head, rest = noun, ""
    if " " in noun:  # "files of zeros"
        match = re.match(r"(.*?)( (?:of|that|older)\b.*|)$", noun)
        head, rest = match.groups() if match else (noun, "")
    return f"{number:,} {head}{'es' if head.endswith(('x', 's')) else 's'}{rest}"


def parse_size(text: str) -> int:
    """Return the number of bytes of a size such as "5GB" or "500MiB".

    Units are powers of 1000 unless they have an i. Raises BadRequest for other texts.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([kKMGT]?)(i?)B?", text)
    if match is None:
        raise BadRequest(f"{text!r} is not a size such as 5GB")
    base = 1024 if match[3] else 1000
    try:
        return int(float(match[1]) * base ** " kMGT".index((match[2] or " ").replace("K", "k")))
    except OverflowError:
        raise BadRequest(f"{text!r} is more than can be counted") from None


def near_word(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that is most like `word`; None if none is like it."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(choices), 1)), None)


def suggestion(word: str, choices: Iterable[str]) -> str:
    """Return "did you mean X? " for the choice that is most like `word`; empty if none is."""
    near = near_word(word, choices)
    return f"did you mean {near}? " if near else ""


def quoted(text: str, most: int = 0) -> str:
    """Return `text` as a name in a message: escaped, in single quotes, at most `most` characters.

    0 means no limit. Not `repr`, which chooses between two kinds of quotes.
    """
    shown = text[:most] + "..." if most and len(text) > most else text
    return f"'{printable(shown)}'"


def quoted_list(names: Iterable[str], most: int = 0) -> str:
    """Return quoted names separated by commas: 'a', 'b', 'c' and 9 more. 0 means no limit."""
    every = list(names)
    shown = every[:most] if most else every
    text = ", ".join(map(quoted, shown))
    return f"{text} and {len(every) - len(shown):,} more" if len(shown) < len(every) else text


def html_table(title: str, rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Return a table with a caption. All texts may come from a file: they are escaped."""
    import html

    def cells(texts: Sequence[str], kind: str) -> str:
        shown = (f"<{kind}>{html.escape(printable(text))}</{kind}>" for text in texts)
        return f"<tr>{''.join(shown)}</tr>"

    parts = [f"<table><caption>{html.escape(printable(title))}</caption>"]
    parts += [f"<thead>{cells(head, 'th')}</thead>"] if head else []
    parts += ["<tbody>", *(cells(row, "td") for row in rows), "</tbody></table>"]
    return "".join(parts)

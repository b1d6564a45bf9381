"""Text that is safe to print or to show as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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

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


def suggestion(word: str, choices: Iterable[str]) -> str:
    """Return "did you mean X? " for the choice that is most like `word`; empty if none is."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(choices), 1)
    return f"did you mean {near[0]}? " if near else ""


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

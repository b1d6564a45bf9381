"""Text that is safe to print."""

from __future__ import annotations


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

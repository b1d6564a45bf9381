"""The interface of the scanner that the `scan` of a format gets; its package is above this one."""

from __future__ import annotations

from typing import Protocol

from cgpt_convert.sources.local import Source


class PartScanner(Protocol):
    """The scanner, at a file of the format or at a part of another file that looks like one."""

    @property
    def in_storage(self) -> bool:
        """Whether the part is the data of a tensor, which may look like anything by chance."""

    def part(self, source: Source, name: str) -> None:
        """Scan a file inside this one."""

    def pickles(self, at: int, *, certain: bool) -> int:
        """Trace the pickles from byte `at` on, and return their number.

        `certain` states that loaders read a pickle there, whatever the bytes are.
        """

    def template(self, text: str, name: str) -> None:
        """Look for code in a chat template."""

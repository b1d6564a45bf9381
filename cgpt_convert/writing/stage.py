"""Where an output's files wait until all are written: what every kind of place for them does."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, TypeVar

from cgpt_convert.plan import FilePlan

S = TypeVar("S", bound="Stage")


class File(Protocol):
    """A temporary file, open to be written."""

    def write(self, data: memoryview, at: int) -> int:
        """Write from the start of `data` at the offset; how much was."""

    def read(self, nbytes: int, at: int) -> bytes:
        """So many bytes, or what there is of them, from the offset."""

    def close(self) -> None:
        """No more will be written."""


class Stage:
    """Where files are written before they are published together. Leaving it removes the rest."""

    def __enter__(self: S) -> S:  # noqa: PYI019 typing.Self came with Python 3.11
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            self.discard()
        except BaseException:  # a Ctrl-C does not stop the cleaning
            self.discard()
            raise
        self.left(error)

    def left(self, error: BaseException | None) -> None:
        """It is over, and clean; `error` is what ended it early."""

    def check_space(self, nbytes: int) -> None:
        """Raise CannotWrite if it is known that there is no room for so much."""

    def final(self, path: str) -> str:
        """Where the output `path` will be. Raises CannotWrite if that is outside of the output."""
        raise NotImplementedError

    def open(self, plan: FilePlan) -> File:
        """The temporary file for what is planned."""
        raise NotImplementedError

    @property
    def place(self) -> str:
        """The folder that the temporaries lie in."""
        raise NotImplementedError

    def written(self) -> dict[str, str]:
        """The temporary path of each output path so far."""
        raise NotImplementedError

    def publish(self) -> list[str]:
        """Give every file its name; the paths."""
        raise NotImplementedError

    def discard(self) -> None:
        """Remove what was not published."""
        raise NotImplementedError

"""The interface of stages, which keep an output's files until all are written."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, TypeVar

from cgpt_convert.plan import FilePlan

S = TypeVar("S", bound="Stage")


class StagedFile(Protocol):
    """A temporary file, open for writing."""

    def write(self, data: memoryview, at: int) -> int:
        """Write from the start of `data` at the offset; return the number of bytes written."""

    def read(self, nbytes: int, at: int) -> bytes:
        """Return up to `nbytes` bytes from the offset."""

    def close(self) -> None:
        """Close the temporary file."""


class Stage:
    """A place for files before they are published together. Leaving it removes the others."""

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
        except BaseException:  # KeyboardInterrupt must not stop the cleanup
            self.discard()
            raise
        self.left(error)

    def left(self, error: BaseException | None) -> None:
        """Finish after the cleanup; `error` is the exception that ended the stage early."""

    def check_space(self, nbytes: int) -> None:
        """Raise CannotWrite if the space is known to be insufficient for `nbytes`."""

    def final(self, path: str) -> str:
        """Return the final path of the output `path`. CannotWrite if it is outside the output."""
        raise NotImplementedError

    def open(self, plan: FilePlan) -> StagedFile:
        """Create the temporary file for the plan."""
        raise NotImplementedError

    @property
    def place(self) -> str:
        """The folder that contains the temporary files."""
        raise NotImplementedError

    def written(self) -> dict[str, str]:
        """Return output path -> temporary path of the files so far."""
        raise NotImplementedError

    def publish(self) -> list[str]:
        """Rename every file to its final name and return the paths."""
        raise NotImplementedError

    def discard(self) -> None:
        """Remove everything that was not published."""
        raise NotImplementedError

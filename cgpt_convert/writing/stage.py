"""The interface of stages, which keep an output's files until all are written, and of one file."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, TypeVar

from isal.isal_zlib import crc32, crc32_combine

from cgpt_convert.core.errors import CannotWrite, cannot_write
from cgpt_convert.core.threads import WorkerPool
from cgpt_convert.plan import Crc32, FileDigest, FilePlan, Part, part_nbytes
from cgpt_convert.sources.local import CHUNK

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


class OutputFile:
    """A temporary file of a stage, written at any offset; it checks that all bytes are written."""

    def __init__(self, stage: Stage, plan: FilePlan, workers: WorkerPool) -> None:
        self.plan = plan
        self._workers = workers
        self._where = stage.final(plan.path)
        self.covered = {
            index for p in plan.parts if isinstance(p, Crc32) for index in range(p.first, p.last)
        }
        self.sums: dict[int, int] = {}  # CRC-32 of the covered parts, by index
        self._written = 0
        with workers.lock:
            self._file = stage.open(plan)

    def __enter__(self) -> None:
        """Do nothing; the file is open."""

    def __exit__(self, *_error: object) -> None:
        try:
            self._file.close()
        except OSError as error:  # network file systems may report errors only on close
            raise self._cannot(error) from error
        if _error[0] is None and self._written != self.plan.nbytes:
            why = f"{self._written:,} bytes were written, but {self.plan.nbytes:,} were planned"
            raise CannotWrite(why, where=self._where)

    def placed(self) -> Iterator[tuple[int, int, Part]]:
        """Yield offset, index and part, in order."""
        at = 0
        for index, part in enumerate(self.plan.parts):
            yield at, index, part
            at += part_nbytes(part)

    def write(self, data: memoryview, at: int) -> None:
        """Write all of `data` at the offset."""
        done = 0
        try:
            while done < len(data):
                done += self._file.write(data[done:], at + done)
        except OSError as error:
            raise self._cannot(error) from error
        with self._workers.lock:
            self._written += done
        self._workers.advance(done)

    def crc32(self, part: Crc32) -> int:
        """Return the CRC-32 of the parts that `part` covers."""
        value = 0
        for index in range(part.first, part.last):
            value = crc32_combine(value, self.sums[index], part_nbytes(self.plan.parts[index]))
        return value

    def digest(self) -> FileDigest:
        """Read the file again and hash it, for files with checksums before the data they cover."""
        import hashlib

        digest, value = hashlib.sha256(), 0
        for at in range(0, self.plan.nbytes, CHUNK):
            data = self._file.read(CHUNK, at)
            digest.update(data)
            value = crc32(data, value)
        return FileDigest(digest.hexdigest(), value)

    def _cannot(self, error: OSError) -> CannotWrite:
        return cannot_write(error, self._where)

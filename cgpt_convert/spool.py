"""A temporary file without a name, for bytes that would be fetched or unpacked again and again."""

from __future__ import annotations

import os
import shutil
import tempfile

from cgpt_convert.errors import Unreadable
from cgpt_convert.source import pread


class Spool:
    """Bytes in a temporary file, to be read at any place. They go when nobody holds them.

    Raises NoRoom if the folder for temporary files cannot take them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  as long as we live
        except OSError as error:
            raise _no_room(error) from None

    def write(self, piece: memoryview | bytes, offset: int) -> None:
        """Put the bytes at `offset`."""
        rest = memoryview(piece)
        try:
            self._file.seek(offset)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _no_room(error) from None

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        done = 0
        while done < len(buffer):
            try:
                count = pread(self._file.fileno(), buffer[done:], offset + done)
            except OSError as error:
                raise _no_room(error) from None
            if not count:
                raise Unreadable("the temporary file became shorter", where=self.name)
            done += count

    def close(self) -> None:
        """Let them go."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


class NoRoom(Unreadable):
    """The folder for temporary files failed us."""


def room() -> tuple[int, str]:
    """How many bytes the folder for temporary files has free, and its path."""
    try:
        folder = tempfile.gettempdir()
        return shutil.disk_usage(folder).free, folder
    except OSError as error:
        raise _no_room(error) from None


def _no_room(error: OSError) -> NoRoom:
    folder = tempfile.tempdir  # found by now, unless there is none
    return NoRoom(
        os.strerror(error.errno or 0),
        where=os.fsdecode(folder) if folder else "temporary files",
        hint="set TMPDIR to a folder that can take them",
    )

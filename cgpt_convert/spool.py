"""A temporary file without a name, for bytes that would be fetched or unpacked again and again."""

from __future__ import annotations

import os

from cgpt_convert.errors import Unreadable
from cgpt_convert.source import pread


class Spool:
    """Bytes written in order, to be read at any place. They go when nobody holds them.

    Raises Unreadable if the folder for temporary files cannot take them.
    """

    def __init__(self, name: str) -> None:
        import tempfile  # takes as long to import as all of this package that `scan` needs

        self.name = name
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  as long as we live
        except OSError as error:
            raise _no_room(error) from None

    def write(self, piece: memoryview | bytes, offset: int) -> None:
        """Write it there."""
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
            count = pread(self._file.fileno(), buffer[done:], offset + done)
            if not count:
                raise Unreadable("the temporary file became shorter", where=self.name)
            done += count

    def close(self) -> None:
        """Let them go."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


def room() -> tuple[int, str]:
    """How many bytes the folder for temporary files has free, and its path."""
    import shutil
    import tempfile

    try:
        folder = tempfile.gettempdir()
        return shutil.disk_usage(folder).free, folder
    except OSError as error:
        raise _no_room(error) from None


def _no_room(error: OSError) -> Unreadable:
    import tempfile

    reason = os.strerror(error.errno or 0)
    where = tempfile.tempdir or "temporary files"  # found by then, unless there is none
    return Unreadable(reason, where=os.fsdecode(where), hint="set TMPDIR to a folder that has room")

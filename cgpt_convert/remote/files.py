"""Bytes of a remote object that are held locally: read in order once, then at any place."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import BinaryIO

from cgpt_convert.errors import Malformed, Unreadable
from cgpt_convert.remote.fetching import patiently
from cgpt_convert.remote.objects import Broken, Object
from cgpt_convert.remote.traffic import traffic
from cgpt_convert.source import unreadable


class Downloaded:
    """A remote object, read whole into a temporary file that has no name: it goes with us."""

    def __init__(self, thing: Object) -> None:
        self.name = thing.name
        try:
            self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  as long as we live
        except OSError as error:
            raise unreadable(error, tempfile.gettempdir()) from None
        self.nbytes = self._download(thing)
        traffic.add(total=self.nbytes)

    def _download(self, thing: Object) -> int:
        done = 0

        def attempt() -> None:
            nonlocal done
            done, total, pieces = thing.stream(done)
            _check_space(self.name, (total or done) - done)
            self._file.seek(done)
            for piece in pieces:
                self._file.write(piece)
                done += len(piece)
            if total is not None and done != total:
                raise Broken("the answer ended early")
            self._file.truncate(done)
            self._file.flush()

        try:
            patiently(self.name, attempt, lambda: done)
        except OSError as error:
            raise unreadable(error, tempfile.gettempdir()) from None
        return done

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        if offset < 0 or offset + len(buffer) > self.nbytes:
            raise Malformed(f"the file ends before byte {offset + len(buffer):,}", where=self.name)
        _pread(self._file, offset, buffer, self.name)

    def check_unchanged(self) -> None:
        """The file is ours alone."""

    def same_file(self, _other: os.stat_result) -> bool:
        """No file that has a name is this one."""
        return False

    def close(self) -> None:
        """Let it go."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


def _check_space(name: str, nbytes: int) -> None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise Unreadable(
            f"{nbytes:,} bytes do not fit into {folder}, which has {free:,}",
            where=name,
            hint="set TMPDIR to a folder that has room",
        )


def _pread(file: BinaryIO, offset: int, buffer: memoryview, name: str) -> None:
    done = 0
    while done < len(buffer):
        data = os.pread(file.fileno(), len(buffer) - done, offset + done)
        if not data:
            raise Unreadable("the temporary file became shorter", where=name)
        buffer[done : done + len(data)] = data
        done += len(data)

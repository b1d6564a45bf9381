"""Unnamed temporary files for bytes that would otherwise be fetched or decompressed repeatedly."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from typing import Protocol

from cgpt_convert.core.errors import Unreadable
from cgpt_convert.sources.local import pread


class TempFile:
    """Random-access bytes in a temporary file, deleted with the last reference.

    Raises NoTempSpace if the folder for temporary files cannot store them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()  # protects the file's position
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed by `close`
        except OSError as error:
            raise _no_room(error) from None

    def write(self, piece: memoryview | bytes, offset: int) -> None:
        """Write the bytes at `offset`."""
        rest = memoryview(piece)
        try:
            with self._lock:
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
                message = "the temporary file became shorter while it was used"
                raise Unreadable(message, where=self.name)
            done += count

    def close(self) -> None:
        """Close the temporary file."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


class NoTempSpace(Unreadable):
    """The folder for temporary files is full or cannot be used."""


def room() -> tuple[int, str]:
    """Return the free bytes in the folder for temporary files, and its path."""
    try:
        folder = tempfile.gettempdir()
        return shutil.disk_usage(folder).free, folder
    except OSError as error:
        raise _no_room(error) from None


def _no_room(error: OSError) -> NoTempSpace:
    folder = tempfile.tempdir  # set by now, unless no folder can be used
    return NoTempSpace(
        f"cannot write a temporary file: {error.strerror or error}",
        where=os.fsdecode(folder) if folder else "",
        hint="set TMPDIR to a writable folder with enough free space",
    )


class SharedTempFile:
    """A temporary file shared by many users, so that it needs one descriptor.

    It may use half of the free space. When that is full, all users are invalidated and a new file
    is started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._temp_file: weakref.ref[TempFile] | None = None  # kept alive by the users
        self._filled = 0
        self._users: weakref.WeakSet[TempFileUser] = weakref.WeakSet()

    def place(self, nbytes: int, user: TempFileUser) -> tuple[TempFile, int] | None:
        """Return a file and the start of `nbytes` bytes in it for `user`; None if it does not fit.

        Raises NoTempSpace if the folder for temporary files cannot be used.
        """
        with self._lock:
            temp_file = self._temp_file() if self._temp_file else None
            free, _ = room()
            filled = self._filled if temp_file else 0
            if 2 * nbytes > free + filled:
                return None
            if temp_file is None or 2 * (filled + nbytes) > free + filled:
                self._clear()
                temp_file, filled = TempFile(user.name), 0
                self._temp_file = weakref.ref(temp_file)
            self._filled = filled + nbytes
            self._users.add(user)
            return temp_file, filled

    def settle(self, user: TempFileUser, place: tuple[TempFile, int]) -> None:
        """Hand the written place to `user`, unless it was invalidated meanwhile."""
        with self._lock:
            if user in self._users and self._temp_file and self._temp_file() is place[0]:
                user.hold(place)

    def clear(self) -> None:
        """Invalidate all users."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        for user in list(self._users):
            user.let_go()
        self._users.clear()
        self._temp_file = None


class TempFileUser(Protocol):
    """A user of a place in a shared temporary file."""

    name: str

    def hold(self, place: tuple[TempFile, int]) -> None:
        """Read from the temporary file from now on."""

    def let_go(self) -> None:
        """Release the temporary file. Reads in progress may continue."""

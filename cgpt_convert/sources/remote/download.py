"""Remote objects downloaded to a temporary file: one sequential read, then random access."""

from __future__ import annotations

from cgpt_convert.core.errors import Unreadable
from cgpt_convert.core.text import quoted
from cgpt_convert.core.threads import step
from cgpt_convert.sources.local import outside
from cgpt_convert.sources.remote.remote_object import RemoteObject, TransientError
from cgpt_convert.sources.remote.remote_settings import traffic
from cgpt_convert.sources.remote.retry import patiently
from cgpt_convert.sources.temp_cache import TempFile, room


class DownloadedFile:
    """A remote object, downloaded into an unnamed temporary file that ends with the process."""

    def __init__(self, thing: RemoteObject) -> None:
        self.name = thing.name
        self._temp_file = TempFile(self.name)
        self.nbytes = self._download(thing)
        traffic.add(total=self.nbytes)

    def _download(self, thing: RemoteObject) -> int:
        done = 0

        def attempt() -> None:
            nonlocal done
            with (
                thing.stream(done) as (start, total, pieces),
                step("downloading", total or 0) as advance,
            ):
                done = start
                advance(start)
                most = done + _space(self.name, None if total is None else total - done)
                for piece in pieces:
                    if done + len(piece) > most:
                        raise _no_space(self.name, f"more than {most:,} bytes")
                    self._temp_file.write(piece, done)
                    done += len(piece)
                    advance(len(piece))
            if total is not None and done != total:
                raise TransientError("the response ended early")

        patiently(self.name, attempt, lambda: done)
        return done

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        if offset < 0 or offset + len(buffer) > self.nbytes:
            raise outside(self.name, self.nbytes, offset, len(buffer))
        self._temp_file.readinto(offset, buffer)

    def check_unchanged(self) -> None:
        """Do nothing: no other process can change the temporary file."""

    def close(self) -> None:
        """Close the temporary file."""
        self._temp_file.close()


def _space(name: str, announced: int | None) -> int:
    """Return how many bytes may be written; raise Unreadable if `announced` bytes do not fit.

    If the size is not announced, half of the free space may be used, because other programs use the
    disk too.
    """
    free, _ = room()
    if announced is None:
        return free // 2
    if announced > free:
        raise _no_space(name, f"{announced:,} bytes")
    return announced


def _no_space(name: str, what: str) -> Unreadable:
    free, folder = room()
    return Unreadable(
        f"the file needs {what}, the folder {quoted(folder)} has {free:,} bytes free",
        where=name,
        hint="set TMPDIR to a folder with enough free space",
    )

"""Temporary siblings of the output, and the moment they get its name.

A temporary is `.NAME.RANDOM.partial` beside the output, locked while its writer lives: one that
is not locked was left by a process that was killed, and is removed by the next run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from types import TracebackType

from cgpt_convert.errors import CannotWrite

try:
    import fcntl
except ImportError:  # Windows: leftovers are then kept, and named
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".partial"
_LONGEST = 255 - len("..12345678") - len(_SUFFIX)  # NAME_MAX of ext4, xfs, btrfs, apfs, in bytes

# A folder is replaced only if it holds one of these: it is then an output of ours
SIDECARS = ("mapping.json", "tensors.json")


class Stage:
    """Where files are written before they are published together. Leaving it removes the rest."""

    def __init__(self) -> None:
        self._locks: list[int] = []

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()
        for lock in self._locks:
            os.close(lock)

    def create(self, path: str) -> tuple[str, int]:
        """The temporary path for the output `path`, and its open descriptor; the caller closes."""
        raise NotImplementedError

    def publish(self) -> list[str]:
        """Give every file its name; the paths."""
        raise NotImplementedError

    def discard(self) -> None:
        """Remove what was not published."""
        raise NotImplementedError

    def _keep(self, descriptor: int) -> bool:
        """Lock what was just created for as long as this process lives.

        False if another run removed it as a leftover before the lock was ours: create it again.
        """
        lock = os.dup(descriptor)
        self._locks.append(lock)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        return os.fstat(lock).st_nlink > 0


class Files(Stage):
    """Files of an existing folder."""

    def __init__(self, folder: str, names: list[str], overwrite: bool) -> None:
        super().__init__()
        self._folder = folder or "."
        self._overwrite = overwrite
        self._staged: list[tuple[str, str]] = []  # temporary, final
        if not os.path.isdir(self._folder):
            raise CannotWrite("no such folder", where=self._folder)
        for name in names:
            final = os.path.join(self._folder, name)
            if os.path.isdir(final):
                raise CannotWrite("is a folder", where=final)
            if os.path.lexists(final) and not overwrite:
                raise _exists(final)
            reclaim(self._folder, name)

    def create(self, path: str) -> tuple[str, int]:
        while True:
            temporary = os.path.join(self._folder, _temporary_name(path))
            try:
                descriptor = _create(temporary)
            except OSError as error:
                raise _cannot(error, self._folder) from error
            self._staged.append((temporary, os.path.join(self._folder, path)))
            if self._keep(descriptor):
                return temporary, descriptor
            os.close(descriptor)
            self._staged.pop()

    def publish(self) -> list[str]:
        paths = []
        while self._staged:
            temporary, final = self._staged[0]
            try:
                _rename(temporary, final, overwrite=self._overwrite)
            except OSError as error:
                raise _cannot(error, final) from error
            paths.append(final)
            del self._staged[0]
        return paths

    def discard(self) -> None:
        for temporary, _ in self._staged:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


class Folder(Stage):
    """A new folder, which appears with all its files."""

    def __init__(self, folder: str, overwrite: bool) -> None:
        super().__init__()
        self._final = folder.rstrip("/") or folder
        parent, name = os.path.split(self._final)
        self._parent = parent or "."
        if not os.path.isdir(self._parent):
            raise CannotWrite("no such folder", where=self._parent)
        if os.path.lexists(self._final):
            self._check_replaceable(overwrite)
        reclaim(self._parent, name)
        self._names: list[str] = []
        kept = False
        while not kept:
            self._temporary = os.path.join(self._parent, _temporary_name(name))
            try:
                os.mkdir(self._temporary)
                descriptor = os.open(self._temporary, os.O_RDONLY)
            except OSError as error:
                raise _cannot(error, self._parent) from error
            kept = self._keep(descriptor)
            os.close(descriptor)

    def _check_replaceable(self, overwrite: bool) -> None:
        if os.path.islink(self._final) or not os.path.isdir(self._final):
            raise CannotWrite("exists and is not a folder", where=self._final)
        inside = os.listdir(self._final)
        if not inside:
            return
        if not overwrite:
            raise _exists(self._final)
        if not set(SIDECARS) & set(inside):
            raise CannotWrite(
                "the folder was not written by this program, so it is not replaced",
                where=self._final,
                hint="name another folder, or remove it yourself",
            )

    def create(self, path: str) -> tuple[str, int]:
        temporary = os.path.join(self._temporary, *path.split("/"))
        try:
            os.makedirs(os.path.dirname(temporary), exist_ok=True)
            descriptor = _create(temporary)
        except OSError as error:
            raise _cannot(error, self._final) from error
        self._names.append(path)
        return temporary, descriptor

    def publish(self) -> list[str]:
        old = None
        try:
            if os.path.isdir(self._final) and os.listdir(self._final):
                old = os.path.join(self._parent, _temporary_name(os.path.basename(self._final)))
                os.rename(self._final, old)
            os.rename(self._temporary, self._final)
        except OSError as error:
            if old and not os.path.lexists(self._final):
                os.rename(old, self._final)
            raise _cannot(error, self._final) from error
        if old:
            shutil.rmtree(old, ignore_errors=True)
        return [os.path.join(self._final, *name.split("/")) for name in self._names]

    def discard(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)


def reclaim(folder: str, name: str) -> list[str]:
    """The temporaries of `name` that a killed run had left in `folder`; they are removed."""
    start = _temporary_name(name).rsplit(".", 2)[0] + "."
    removed = []
    for entry in os.scandir(folder):
        if not (entry.name.startswith(start) and entry.name.endswith(_SUFFIX)):
            continue
        if _remove_unlocked(entry):
            removed.append(entry.path)
    return removed


def check_space(folder: str, nbytes: int) -> None:
    """Raise CannotWrite now if the file system has no room for `nbytes`, not hours from now."""
    if not hasattr(os, "statvfs"):
        return
    status = os.statvfs(folder or ".")
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and free < nbytes:
        raise CannotWrite(f"{nbytes:,} bytes are needed and {free:,} are free", where=folder or ".")


def _remove_unlocked(entry: os.DirEntry[str]) -> bool:
    """Remove the entry unless its writer lives; locked meanwhile, so that no writer takes it up."""
    if fcntl is None or entry.is_symlink():
        return False
    try:
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if entry.is_dir():
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _temporary_name(name: str) -> str:
    short = os.fsdecode(os.fsencode(name)[:_LONGEST])
    return f".{short}.{secrets.token_hex(4)}{_SUFFIX}"


def _create(path: str) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)


def _rename(temporary: str, final: str, *, overwrite: bool) -> None:
    """Give the file its name; without `overwrite` never over one that appeared meanwhile."""
    if not overwrite:
        try:
            os.link(temporary, final)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(final):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        else:
            os.unlink(temporary)
            return
    os.replace(temporary, final)


def _exists(path: str) -> CannotWrite:
    return CannotWrite("exists already", where=path, hint="--overwrite replaces it")


def _cannot(error: OSError, path: str) -> CannotWrite:
    if isinstance(error, FileExistsError):
        return _exists(path)
    return CannotWrite(os.strerror(error.errno or 0), where=path)

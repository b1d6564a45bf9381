"""Temporary siblings of the output, and their publication under the final names.

KeyboardInterrupt can occur between any two lines. Each name is therefore recorded before the file
is created, and `discard` checks which files exist.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from cgpt_convert.core.errors import CannotWrite
from cgpt_convert.core.text import quoted
from cgpt_convert.plan import FilePlan
from cgpt_convert.writing.output_checks import (
    cannot,
    check_space,
    components,
    exists,
    is_present,
    not_ours,
    reserve,
)
from cgpt_convert.writing.stage import Stage, StagedFile
from cgpt_convert.writing.temp_files import hold, reclaim, remove_folder, temporary_name


class _LocalTempFile(NamedTuple):
    """A temporary file in the local file system."""

    descriptor: int

    def write(self, data: memoryview, at: int) -> int:
        return os.pwrite(self.descriptor, data, at)

    def read(self, nbytes: int, at: int) -> bytes:
        return os.pread(self.descriptor, nbytes, at)

    def close(self) -> None:
        os.close(self.descriptor)


class LocalStage(Stage):
    """A stage in the existing folder `folder`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder or "."
        if not os.path.isdir(self.folder):
            raise _no_folder(self.folder)
        self._locks: list[int] = []

    def left(self, error: BaseException | None) -> None:  # noqa: ARG002  for any error
        """Release the locks."""
        for lock in self._locks:
            os.close(lock)

    def check_space(self, nbytes: int) -> None:
        """Raise CannotWrite if the file system lacks `nbytes` of free space."""
        check_space(self.folder, nbytes)

    def create(self, path: str) -> tuple[str, int]:
        """Return the temporary path for the output `path` and its open descriptor.

        The caller closes the descriptor.
        """
        raise NotImplementedError

    def open(self, plan: FilePlan) -> StagedFile:
        """Return a locked file with its planned size preallocated."""
        temporary, descriptor = self.create(plan.path)
        try:
            reserve(temporary, plan.nbytes, self.final(plan.path))
        except CannotWrite:
            os.close(descriptor)
            raise
        return _LocalTempFile(descriptor)

    @property
    def place(self) -> str:
        """The output folder itself."""
        return self.folder

    def _keep(self, descriptor: int) -> bool:
        """Lock a newly created file for the lifetime of this process.

        Return False if another run removed it as a leftover before it was locked; it must then be
        created again.
        """
        lock = os.dup(descriptor)
        self._locks.append(lock)
        hold(lock)
        return os.fstat(lock).st_nlink > 0


class LocalFilesStage(LocalStage):
    """Files in an existing folder.

    One file is replaced atomically. Several cannot be: the old files are first moved aside, last to
    first, so that new and old files are never mixed. They are restored if publishing fails.
    """

    def __init__(self, folder: str, names: list[str], *, overwrite: bool) -> None:
        super().__init__(folder)
        self._overwrite = overwrite
        self._staged: dict[str, str] = {}  # temporary -> final
        self._aside: dict[str, str] = {}  # temporary path of an old file -> final
        for name in names:
            final = self.final(name)
            if os.path.isdir(final):
                raise CannotWrite("the output is a folder", where=final, hint="pass a file name")
            if is_present(final) and not overwrite:
                raise exists(final)
            reclaim(self.folder, name)

    def final(self, path: str) -> str:
        """Return the path in the output folder, without `./` before a bare name."""
        folder = "" if self.folder == "." else self.folder
        return os.path.join(folder, *components(path, most=1))

    def create(self, path: str) -> tuple[str, int]:
        """Create a locked temporary file next to the final path."""
        final = self.final(path)
        while True:
            temporary = os.path.join(self.folder, temporary_name(path))
            self._staged[temporary] = final
            try:
                descriptor = _create(temporary)
            except OSError as error:
                raise cannot(error, final) from error
            if self._keep(descriptor):
                return temporary, descriptor
            os.close(descriptor)
            del self._staged[temporary]

    def written(self) -> dict[str, str]:
        """Return temporary paths by file name; these outputs have no folders."""
        return {os.path.basename(final): temporary for temporary, final in self._staged.items()}

    def publish(self) -> list[str]:
        """Rename the files in order, so that an index planned last appears last."""
        finals = list(self._staged.values())
        for final in reversed(finals if self._overwrite and len(finals) > 1 else []):
            if os.path.lexists(final):
                aside = os.path.join(self.folder, temporary_name(os.path.basename(final)))
                self._aside[aside] = final
                _publishing(os.rename, final, aside, final)
        give = os.replace if self._overwrite else _rename
        for temporary, final in self._staged.items():
            _publishing(give, temporary, final, final)
        return finals

    def discard(self) -> None:
        """Remove temporary files; restore the old files unless all new ones are published."""
        ours = [final for final in self._staged.values() if self._is_ours(final)]
        complete = len(ours) == len(self._staged)
        for temporary in self._staged:
            _unlink(temporary)
        if not complete:
            for final in ours:
                _unlink(final)
        for aside, final in self._aside.items():
            if complete:
                _unlink(aside)
            elif os.path.lexists(aside) and not os.path.lexists(final):
                os.rename(aside, final)

    def _is_ours(self, path: str) -> bool:
        try:
            status = os.lstat(path)
        except OSError:
            return False
        return any(os.path.samestat(status, os.fstat(lock)) for lock in self._locks)


class LocalFolderStage(LocalStage):
    """A new folder that appears together with all its files."""

    def __init__(self, folder: str, *, overwrite: bool) -> None:
        self._final = folder.rstrip("/")
        parent, self._name = os.path.split(self._final)
        if self._name in ("", ".", ".."):
            raise CannotWrite(
                "the output folder has no name", where=folder, hint="pass a folder name"
            )
        super().__init__(parent)
        self._overwrite = overwrite
        self._temporary = ""
        self._old = ""  # temporary path of the replaced folder
        self._names: list[str] = []
        self._check_replaceable()
        reclaim(self.folder, self._name)

    def _check_replaceable(self) -> None:
        if not is_present(self._final):
            return
        if os.path.islink(self._final) or not os.path.isdir(self._final):
            raise CannotWrite(
                "already exists and is not a folder",
                where=self._final,
                hint="choose another output name",
            )
        if not os.listdir(self._final):
            return
        if not self._overwrite:
            raise exists(self._final)
        strange = not_ours(self._final)
        if strange is not None:
            raise CannotWrite(
                f"the folder contains {quoted(strange)}, which cgpt-convert did not write",
                where=self._final,
                hint="choose another folder, or remove this one first",
            )

    def final(self, path: str) -> str:
        """Return the path inside the final folder."""
        return os.path.join(self._final, *components(path))

    def create(self, path: str) -> tuple[str, int]:
        """Create a file in the temporary folder; the lock is on the folder."""
        final = self.final(path)
        if not self._temporary:
            self._make()
        temporary = os.path.join(self._temporary, *components(path))
        try:
            os.makedirs(os.path.dirname(temporary), exist_ok=True)
            descriptor = _create(temporary)
        except OSError as error:
            raise cannot(error, final) from error
        self._names.append(path)
        return temporary, descriptor

    def _make(self) -> None:
        kept = False
        while not kept:
            self._temporary = os.path.join(self.folder, temporary_name(self._name))
            try:
                os.mkdir(self._temporary)
                descriptor = os.open(self._temporary, os.O_RDONLY)
            except FileNotFoundError:  # removed as a leftover, or the parent is gone
                if not os.path.isdir(self.folder):
                    raise _no_folder(self.folder) from None
                continue
            except OSError as error:
                raise cannot(error, self._final) from error
            kept = self._keep(descriptor)
            os.close(descriptor)

    @property
    def place(self) -> str:
        """The temporary folder."""
        return self._temporary

    def written(self) -> dict[str, str]:
        """Return the paths inside the temporary folder."""
        return {name: os.path.join(self._temporary, *components(name)) for name in self._names}

    def publish(self) -> list[str]:
        """Rename the folder to its final name, after moving an old one aside."""
        self._check_replaceable()  # again: hours may have passed
        if os.path.isdir(self._final) and os.listdir(self._final):
            self._old = os.path.join(self.folder, temporary_name(self._name))
            _publishing(os.rename, self._final, self._old, self._final)
        _publishing(os.rename, self._temporary, self._final, self._final)
        return [self.final(name) for name in self._names]

    def discard(self) -> None:
        """Remove the temporary folder, and the old one if it was replaced; else restore it."""
        if self._old and os.path.lexists(self._old):
            if os.path.lexists(self._final):
                remove_folder(self._old, ignore_errors=True)
            else:
                os.rename(self._old, self._final)
        if self._temporary:
            remove_folder(self._temporary, ignore_errors=True)


def _no_folder(path: str) -> CannotWrite:
    if os.path.lexists(path):
        return CannotWrite("not a folder", where=path, hint="choose another output path")
    return CannotWrite("no such folder", where=path, hint="create the folder first")


def _create(path: str) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)


def _rename(temporary: str, final: str) -> None:
    """Rename the file, but never replace a file that was created in the meantime."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(temporary, final)
    else:
        os.unlink(temporary)


def _publishing(do: Callable[[str, str], object], old: str, new: str, final: str) -> None:
    try:
        do(old, new)
    except OSError as error:
        raise cannot(error, final) from error


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):  # it may not exist; the original error matters more
        os.unlink(path)

"""Temporary siblings of the output, and the moment they get its name.

A Ctrl-C can come between any two lines: what is about to be made is noted first, and looked for
afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from cgpt_convert.core.errors import CannotWrite
from cgpt_convert.core.text import printable
from cgpt_convert.plan import FilePlan
from cgpt_convert.writing.output_checks import (
    cannot,
    check_space,
    components,
    exists,
    lies,
    not_ours,
    reserve,
)
from cgpt_convert.writing.stage import File, Stage
from cgpt_convert.writing.temp_files import hold, reclaim, remove_folder, temporary_name


class _LocalFile(NamedTuple):
    """A temporary file of the operating system's."""

    descriptor: int

    def write(self, data: memoryview, at: int) -> int:
        return os.pwrite(self.descriptor, data, at)

    def read(self, nbytes: int, at: int) -> bytes:
        return os.pread(self.descriptor, nbytes, at)

    def close(self) -> None:
        os.close(self.descriptor)


class Local(Stage):
    """A stage in `folder`, which exists."""

    def __init__(self, folder: str) -> None:
        self.folder = folder or "."
        if not os.path.isdir(self.folder):
            raise CannotWrite("no such folder", where=self.folder)
        self._locks: list[int] = []

    def left(self, error: BaseException | None) -> None:  # noqa: ARG002  whatever it was
        """Let go of the locks."""
        for lock in self._locks:
            os.close(lock)

    def check_space(self, nbytes: int) -> None:
        """Of the file system."""
        check_space(self.folder, nbytes)

    def create(self, path: str) -> tuple[str, int]:
        """The temporary path for the output `path`, and its open descriptor; the caller closes."""
        raise NotImplementedError

    def open(self, plan: FilePlan) -> File:
        """A file, locked, with room for what is planned."""
        temporary, descriptor = self.create(plan.path)
        try:
            reserve(temporary, plan.nbytes, self.final(plan.path))
        except CannotWrite:
            os.close(descriptor)
            raise
        return _LocalFile(descriptor)

    @property
    def place(self) -> str:
        """The folder itself."""
        return self.folder

    def _keep(self, descriptor: int) -> bool:
        """Lock what was just created for as long as this process lives.

        False if another run removed it as a leftover before the lock was ours: create it again.
        """
        lock = os.dup(descriptor)
        self._locks.append(lock)
        hold(lock)
        return os.fstat(lock).st_nlink > 0


class Files(Local):
    """Files of an existing folder.

    One file replaces another in a single step. Several cannot: the old ones are first set aside,
    last to first, so that new and old are never mixed, and return if the new ones cannot come.
    """

    def __init__(self, folder: str, names: list[str], *, overwrite: bool) -> None:
        super().__init__(folder)
        self._overwrite = overwrite
        self._staged: dict[str, str] = {}  # temporary -> final
        self._aside: dict[str, str] = {}  # where an old file waits -> final
        for name in names:
            final = self.final(name)
            if os.path.isdir(final):
                raise CannotWrite("is a folder", where=final)
            if lies(final) and not overwrite:
                raise exists(final)
            reclaim(self.folder, name)

    def final(self, path: str) -> str:
        """Beside its siblings."""
        return os.path.join(self.folder, *components(path, most=1))

    def create(self, path: str) -> tuple[str, int]:
        """A locked temporary, beside where it will be."""
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
        """By name: these outputs have no folders."""
        return {os.path.basename(final): temporary for temporary, final in self._staged.items()}

    def publish(self) -> list[str]:
        """Give each its name, in order: an index that was planned last is there last."""
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
        """Remove the temporaries; go back to the old files unless all the new ones are there."""
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
            found = os.lstat(path)
        except OSError:
            return False
        return any(os.path.samestat(found, os.fstat(lock)) for lock in self._locks)


class Folder(Local):
    """A new folder, which appears with all its files."""

    def __init__(self, folder: str, *, overwrite: bool) -> None:
        self._final = folder.rstrip("/")
        parent, self._name = os.path.split(self._final)
        if self._name in ("", ".", ".."):
            raise CannotWrite("the folder to be written needs a name", where=folder)
        super().__init__(parent)
        self._overwrite = overwrite
        self._temporary = ""
        self._old = ""  # where the folder that is replaced waits
        self._names: list[str] = []
        self._check_replaceable()
        reclaim(self.folder, self._name)

    def _check_replaceable(self) -> None:
        if not lies(self._final):
            return
        if os.path.islink(self._final) or not os.path.isdir(self._final):
            raise CannotWrite("exists and is not a folder", where=self._final)
        if not os.listdir(self._final):
            return
        if not self._overwrite:
            raise exists(self._final)
        strange = not_ours(self._final)
        if strange is not None:
            raise CannotWrite(
                f"the folder holds {printable(strange)}, which this program did not write",
                where=self._final,
                hint="name another folder, or remove this one yourself",
            )

    def final(self, path: str) -> str:
        """Inside the folder."""
        return os.path.join(self._final, *components(path))

    def create(self, path: str) -> tuple[str, int]:
        """A file in the temporary folder, which is the one that is locked."""
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
            except FileNotFoundError:  # removed as a leftover; or the folder is gone
                if not os.path.isdir(self.folder):
                    raise CannotWrite("no such folder", where=self.folder) from None
                continue
            except OSError as error:
                raise cannot(error, self._final) from error
            kept = self._keep(descriptor)
            os.close(descriptor)

    @property
    def place(self) -> str:
        """Where the folder lies until it has its name."""
        return self._temporary

    def written(self) -> dict[str, str]:
        """Inside the temporary folder."""
        return {name: os.path.join(self._temporary, *components(name)) for name in self._names}

    def publish(self) -> list[str]:
        """Give the folder its name; the old one waits beside it meanwhile."""
        self._check_replaceable()  # again: hours may have passed
        if os.path.isdir(self._final) and os.listdir(self._final):
            self._old = os.path.join(self.folder, temporary_name(self._name))
            _publishing(os.rename, self._final, self._old, self._final)
        _publishing(os.rename, self._temporary, self._final, self._final)
        return [self.final(name) for name in self._names]

    def discard(self) -> None:
        """Remove what is left of the new folder; of the old one only if the new one is there."""
        if self._old and os.path.lexists(self._old):
            if os.path.lexists(self._final):
                remove_folder(self._old, ignore_errors=True)
            else:
                os.rename(self._old, self._final)
        if self._temporary:
            remove_folder(self._temporary, ignore_errors=True)


def _create(path: str) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)


def _rename(temporary: str, final: str) -> None:
    """Give the file its name, never over one that appeared meanwhile."""
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
    with contextlib.suppress(OSError):  # it may never have been; and why we stopped matters more
        os.unlink(path)

"""Upload the files of an output to a store, under temporary names until all are complete.

No store renames several objects atomically. The last one, the index or the mapping that lists the
others, is therefore renamed last; if it replaces an old one, the old one is removed first.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

from cgpt_convert.core.errors import CannotWrite, CgptError
from cgpt_convert.core.text import printable, quoted
from cgpt_convert.plan import FilePlan
from cgpt_convert.writing.output_checks import components, exists
from cgpt_convert.writing.remote.store import WritableStore
from cgpt_convert.writing.remote.upload import SendQueue, Transfer, Upload, move, upload
from cgpt_convert.writing.stage import Stage, StagedFile
from cgpt_convert.writing.temp_files import temporary_name

_PATIENCE = 10.0  # seconds to wait for pending requests when cancelling


class ObjectStage(Stage):
    """Objects side by side in the store's folder at the URL `folder`."""

    def __init__(self, folder: str, names: list[str], *, overwrite: bool) -> None:
        self._url = folder.rstrip("/")
        self._store = WritableStore(self._url)
        self._names, self._overwrite = names, overwrite
        self._outbox = SendQueue(parallel=self.takes_parts)
        self._temporary: dict[str, str] = {}  # planned path -> temporary path in `_url`
        self._nbytes: dict[str, int] = {}
        self._uploads: list[Upload] = []
        self._moves: list[Transfer] = []
        self._given: list[str] = []  # planned paths being renamed, or already renamed
        self._complete = False
        self._left: list[str] = []  # objects that could not be removed
        self._check_replaceable()

    @property
    def takes_parts(self) -> bool:
        """Whether the store accepts the parts of an object in any order."""
        return self._store.takes_parts

    def _check_replaceable(self) -> None:
        """Raise CannotWrite if an existing object must not be replaced."""
        for name in self._names:
            kind = self._store.kind(self._path(self._last(name)))
            if kind == "directory":
                raise CannotWrite(
                    "the output is a folder", where=self.final(name), hint="pass a file name"
                )
            if kind and not self._overwrite:
                raise exists(self.final(name))

    def _path(self, inside: str) -> str:
        """Return the store's path of an entry in the URL's folder."""
        return f"{self._store.path}/{inside}"

    def _last(self, path: str) -> str:
        """Return the final path of an output, in the URL's folder."""
        return components(path, most=1)[0]

    def _first(self, path: str) -> str:
        """Return the temporary path."""
        return temporary_name(path)

    def final(self, path: str) -> str:
        """Return the final URL."""
        return f"{self._url}/{self._last(path)}"

    def open(self, plan: FilePlan) -> StagedFile:
        """Return an object that is sent while it is written."""
        self._last(plan.path)
        first = self._temporary[plan.path] = self._first(plan.path)
        self._nbytes[plan.path] = plan.nbytes
        sent = upload(self._store, self._path(first), plan.nbytes, self._outbox)
        self._uploads.append(sent)
        return _UploadedFile(sent)

    @property
    def place(self) -> str:
        """The folder as a URL."""
        return f"{self._url}/"

    def written(self) -> dict[str, str]:
        """Wait for the uploads and return the temporary URL of each file."""
        self._finish(self._uploads)
        return {path: f"{self._url}/{first}" for path, first in self._temporary.items()}

    def _finish(self, transfers: list[Upload] | list[Transfer]) -> None:
        self._outbox.wait()
        for each in transfers:
            self._outbox.submit(each.finish)
        self._outbox.wait()

    def publish(self) -> list[str]:
        """Rename all objects but the last, then the last."""
        self._check_replaceable()  # again: hours may have passed
        *others, last = self._temporary
        if others and self._overwrite:
            self._given.append(last)
            self._outbox.submit(functools.partial(self._store.remove, self._path(self._last(last))))
            self._outbox.wait()
        for group in (others, [last]):
            for path in group:
                self._give(path)
            self._finish(self._moves)
            self._moves = []
        self._complete = True
        return [self.final(path) for path in self._temporary]

    def _give(self, path: str) -> None:
        self._given.append(path)
        old, new = self._path(self._temporary[path]), self._path(self._last(path))
        self._moves.append(move(self._store, old, new, self._nbytes[path], self._outbox))

    def discard(self) -> None:
        """Remove temporary objects, and renamed ones unless all are renamed."""
        self._outbox.stop()
        self._outbox.is_done(_PATIENCE)
        ours = list(self._temporary.values())
        if not (self._complete or self._replaces_at_once):
            ours += map(self._last, self._given)
        jobs: list[tuple[str, Callable[[], object]]] = [
            (self._url, each.abort) for each in (*self._uploads, *self._moves)
        ]
        for inside in ours:
            remove = functools.partial(self._store.remove, self._path(inside))
            jobs.append((f"{self._url}/{inside}", remove))
        self._remove(jobs)

    @property
    def _replaces_at_once(self) -> bool:
        """Whether a complete old or new object always exists under the final name."""
        return self.takes_parts and self._overwrite and len(self._temporary) == 1

    def _remove(self, jobs: list[tuple[str, Callable[[], object]]]) -> None:
        """Run each removal once, and record those that fail."""
        self._left = [name for name, _ in jobs]
        outbox = SendQueue(parallel=self.takes_parts)
        for name, job in jobs:
            outbox.submit(functools.partial(self._tried, name, job))
        outbox.is_done(_PATIENCE)

    def _tried(self, name: str, job: Callable[[], object]) -> None:
        with contextlib.suppress(Exception):  # each store has its own error classes
            job()
            self._left.remove(name)

    def left(self, error: BaseException | None) -> None:
        """Report the objects that could not be removed."""
        if not self._left:
            return
        names = ", ".join(map(printable, sorted(set(self._left))))
        left = f"remove what could not be removed: {names}"
        if isinstance(error, CgptError):
            error.hint = "\n  ".join(filter(None, (error.hint, left)))
        elif error is None:
            raise CannotWrite(
                "the output is complete, but some temporary objects could not be removed",
                where=self._url,
                hint=left,
            )


class ObjectFolderStage(ObjectStage):
    """The objects of a folder. An existing folder can only be replaced object by object."""

    def __init__(self, folder: str, names: list[str], *, overwrite: bool) -> None:
        parent, _, self._name = folder.rstrip("/").rpartition("/")
        if "://" not in parent:
            hint = f"pass a folder name, such as {folder.rstrip('/')}/NAME"
            raise CannotWrite("the output folder has no name", where=folder, hint=hint)
        self._folder = temporary_name(self._name)
        super().__init__(parent, names, overwrite=overwrite)

    def _check_replaceable(self) -> None:
        path = self._path(self._name)
        final = f"{self._url}/{self._name}"
        if self._store.kind(path) == "file":
            raise CannotWrite(
                "already exists and is not a folder", where=final, hint="choose another output name"
            )
        inside = self._store.below(path)
        if inside and not self._overwrite:
            raise exists(final)
        strange = [name for name in inside if name not in self._names]
        if strange:
            raise CannotWrite(
                f"the folder contains {quoted(strange[0])}, which is not part of the output",
                where=final,
                hint="choose another folder, or remove this one first",
            )

    def _last(self, path: str) -> str:
        return "/".join((self._name, *components(path)))

    def _first(self, path: str) -> str:
        return "/".join((self._folder, *components(path)))

    @property
    def place(self) -> str:
        """The temporary folder as a URL."""
        return f"{self._url}/{self._folder}/"

    def discard(self) -> None:
        """Also remove the temporary folder, in stores that have folders."""
        super().discard()
        with contextlib.suppress(CgptError):
            self._store.remove_folder(self._path(self._folder))


class _UploadedFile(NamedTuple):
    """An object as a writable file."""

    upload: Upload

    def write(self, data: memoryview, at: int) -> int:
        self.upload.write(data, at)
        return len(data)

    def read(self, nbytes: int, at: int) -> bytes:
        """Not supported; the files are hashed while they are written."""
        raise NotImplementedError

    def close(self) -> None:
        """Do nothing; `written` checks that the upload is complete."""

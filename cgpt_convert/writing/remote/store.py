"""A store that output goes to: what fsspec's file systems do, with errors that are CannotWrite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from cgpt_convert.core.errors import CannotWrite, CgptError
from cgpt_convert.sources.remote.fsspec_store import SIGNED, store, worded
from cgpt_convert.sources.remote.remote_object import Absent, Broken
from cgpt_convert.sources.remote.retry import patiently
from cgpt_convert.sources.remote.settings import traffic
from cgpt_convert.sources.remote.urls import url_of

T = TypeVar("T")


class Writable:
    """The store of the URL called `name`, which messages tell; `path` is its path in the store."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.takes_parts = name.partition("://")[0].lower() in SIGNED  # as S3's servers do
        self._system, self.path = store(name, url_of(name))

    def asked(self, attempt: Callable[[], T]) -> T:
        """What `attempt` gives, which is made once; CannotWrite if it fails."""
        traffic.add(requests=1)
        try:
            return attempt()
        except Exception as error:  # noqa: BLE001  each store has its own kinds
            found = worded(error, self.name)
            if isinstance(found, Broken):
                raise CannotWrite(found.reason, where=self.name) from None
            raise _refused(found) from None

    def s3(self, method: str, path: str, **words: Any) -> Any:
        """The answer of an S3 server to a request about an object, asked again if that may help."""

        def attempt() -> Any:
            if "Body" in words:
                words["Body"].seek(0)
            try:
                return self.once(method, path, **words)
            except Exception as error:  # noqa: BLE001  botocore's are many
                raise worded(error, self.name) from None

        try:
            return patiently(self.name, attempt)
        except CgptError as error:
            raise _refused(error) from None

    def once(self, method: str, path: str, **words: Any) -> Any:
        """The same, asked once; errors are the library's own."""
        traffic.add(requests=1)
        bucket, key = self.bucket_and_key(path)
        return self._system.call_s3(method, Bucket=bucket, Key=key, **words)

    def bucket_and_key(self, path: str) -> tuple[str, str]:
        """What S3 calls an object."""
        bucket, key, _ = self._system.split_path(path)
        return bucket, key

    def create(self, path: str, block: int) -> Any:
        """A new file, to be written from front to back; its folders are made."""
        folder = path.rpartition("/")[0]

        def opened() -> Any:
            self._system.makedirs(folder, exist_ok=True)
            return self._system.open(path, "wb", block_size=block)

        return self.asked(opened)

    def kind(self, path: str) -> str:
        """`file`, `directory` or "", as what is there is called now."""
        return str(self._info(path).get("type", ""))

    def check_nbytes(self, path: str, nbytes: int) -> None:
        """Raise CannotWrite unless an object of that size is there."""
        found = self._info(path).get("size")
        if found != nbytes:
            why = f"the store has {found or 0:,} bytes where {nbytes:,} were written"
            raise CannotWrite(why, where=self.name)

    def below(self, path: str) -> list[str]:
        """The paths of all objects in the folder, relative to it; none if it is not there."""

        def listed() -> list[str]:
            self._system.invalidate_cache()
            try:
                return list(self._system.find(path))
            except FileNotFoundError:
                return []

        start = path.rstrip("/") + "/"
        found = self.asked(listed)
        return sorted(each.removeprefix(start) for each in found if each.startswith(start))

    def move(self, old: str, new: str) -> None:
        """Give the file another path, as the store does it, or by a copy that it makes."""
        system = self._system

        def moved() -> None:
            system.makedirs(new.rpartition("/")[0], exist_ok=True)
            if type(system).mv.__module__ == "fsspec.spec":  # copies, and takes names for patterns
                system.cp_file(old, new)
                system.rm_file(old)
            else:
                system.mv(old, new)

        self.asked(moved)

    def remove(self, path: str) -> None:
        """See that no object is there."""

        def removed() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(path)

        self.asked(removed)

    def remove_folder(self, path: str) -> None:
        """See that no folder is there, which had none but removed files; S3 has no folders."""

        def removed() -> None:
            if self._system.isdir(path):
                self._system.rm(path, recursive=True)

        if not self.takes_parts:
            self.asked(removed)

    def _info(self, path: str) -> dict[str, Any]:
        def asked() -> dict[str, Any]:
            self._system.invalidate_cache()
            try:
                return dict(self._system.info(path))
            except FileNotFoundError:
                return {}

        return self.asked(asked)


def _refused(error: CgptError) -> CannotWrite:
    if isinstance(error, Absent):
        return CannotWrite("no such bucket or folder", where=error.where)
    return CannotWrite(error.message, where=error.where, hint=error.hint)

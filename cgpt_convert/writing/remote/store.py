"""A store for output: fsspec file system operations whose errors are CannotWrite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from cgpt_convert.core.errors import CannotWrite, CgptError
from cgpt_convert.sources.remote.fsspec_store import SIGNED, store, worded
from cgpt_convert.sources.remote.remote_object import NotFound, TransientError
from cgpt_convert.sources.remote.remote_settings import traffic
from cgpt_convert.sources.remote.retry import patiently
from cgpt_convert.sources.remote.urls import url_of

T = TypeVar("T")


class WritableStore:
    """The store of the URL `name`, which is used in messages; `path` is its path in the store."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.takes_parts = name.partition("://")[0].lower() in SIGNED  # S3 servers
        self._system, self.path = store(name, url_of(name))

    def asked(self, attempt: Callable[[], T]) -> T:
        """Return the result of one call of `attempt`. CannotWrite if it fails."""
        traffic.add(requests=1)
        try:
            return attempt()
        except Exception as error:  # noqa: BLE001  each store has its own kinds
            reported = worded(error, self.name)
            if isinstance(reported, TransientError):
                raise CannotWrite(reported.reason, where=self.name) from None
            raise _refused(reported) from None

    def s3(self, method: str, path: str, **words: Any) -> Any:
        """Return the response to an S3 request about an object, with retries."""

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
        """Return the same without retries; errors are the library's own."""
        traffic.add(requests=1)
        bucket, key = self.bucket_and_key(path)
        return self._system.call_s3(method, Bucket=bucket, Key=key, **words)

    def bucket_and_key(self, path: str) -> tuple[str, str]:
        """Return the bucket and the key of an object."""
        bucket, key, _ = self._system.split_path(path)
        return bucket, key

    def create(self, path: str, block: int) -> Any:
        """Create a file for sequential writing, with its parent folders."""
        folder = path.rpartition("/")[0]

        def opened() -> Any:
            self._system.makedirs(folder, exist_ok=True)
            return self._system.open(path, "wb", block_size=block)

        return self.asked(opened)

    def kind(self, path: str) -> str:
        """Return the current type at the path: `file`, `directory` or ""."""
        return str(self._info(path).get("type", ""))

    def check_nbytes(self, path: str, nbytes: int) -> None:
        """Raise CannotWrite unless an object of that size exists."""
        stored = self._info(path).get("size")
        if stored != nbytes:
            why = f"the store has {stored or 0:,} bytes, but {nbytes:,} were written"
            raise CannotWrite(why, where=self.name, hint="run the command again")

    def below(self, path: str) -> list[str]:
        """Return the relative paths of all objects in the folder; empty if it does not exist."""

        def listed() -> list[str]:
            self._system.invalidate_cache()
            try:
                return list(self._system.find(path))
            except FileNotFoundError:
                return []

        start = path.rstrip("/") + "/"
        listing = self.asked(listed)
        return sorted(each.removeprefix(start) for each in listing if each.startswith(start))

    def move(self, old: str, new: str) -> None:
        """Rename the file, with a server-side copy if the store has no rename."""
        system = self._system

        def moved() -> None:
            system.makedirs(new.rpartition("/")[0], exist_ok=True)
            if type(system).mv.__module__ == "fsspec.spec":  # copies, and treats names as patterns
                system.cp_file(old, new)
                system.rm_file(old)
            else:
                system.mv(old, new)

        self.asked(moved)

    def remove(self, path: str) -> None:
        """Remove the object if it exists."""

        def removed() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(path)

        self.asked(removed)

    def remove_folder(self, path: str) -> None:
        """Remove the folder of removed files if it exists; S3 has no folders."""

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
    if isinstance(error, NotFound):
        hint = "create the bucket or folder first"
        return CannotWrite("no such bucket or folder", where=error.where, hint=hint)
    return CannotWrite(error.message, where=error.where, hint=error.hint)

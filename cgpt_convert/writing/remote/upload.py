"""Objects written: in parts that are on their way while the next is made, in bounded memory.

A part may have a hole, filled in when what belongs there is known, as a checksum is that stands
before what it covers. S3 takes parts in any order; other stores take bytes from front to back.
"""

from __future__ import annotations

import contextlib
import functools
import io
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from cgpt_convert.sources.remote.retry import Workers
from cgpt_convert.sources.remote.settings import traffic
from cgpt_convert.writing.remote.store import Writable

MEMORY = 32 << 20  # bytes of parts that are on their way at a time
_PART = 8 << 20  # bytes; S3 wants 5 MiB at least
_MOST_PARTS = 10_000  # of an upload to S3
_COPIED = 256 << 20  # bytes of a part that S3 copies by itself
_COPIED_WHOLE = 5 << 30  # what S3 copies in one request

_workers = Workers()


class Outbox:
    """Jobs that send, several at a time if `parallel`. The first error ends them all."""

    def __init__(self, *, parallel: bool) -> None:
        self._parallel = parallel
        self._changed = threading.Condition()
        self._jobs = self.nbytes = 0  # not yet done
        self._error: BaseException | None = None
        self.stopped = False

    def submit(self, job: Callable[[], object], nbytes: int = 0) -> None:
        """Do `job`, which keeps `nbytes` of memory, as soon as there is room for it.

        Raises what an earlier one raised.
        """
        if not self._parallel:
            job()
            return
        with self._changed:
            while self._jobs and self.nbytes + nbytes > MEMORY and not self.stopped:
                self._changed.wait(0.2)
            self._check()
            self._jobs, self.nbytes = self._jobs + 1, self.nbytes + nbytes
        _workers.submit(functools.partial(self._run, job, nbytes))

    def wait(self) -> None:
        """Return when all are done; raise what the first to fail raised."""
        with self._changed:
            while self._jobs and not self.stopped:
                self._changed.wait(0.2)
            self._check()

    def stop(self) -> None:
        """Begin no more."""
        self.stopped = True

    def is_done(self, seconds: float) -> bool:
        """Is nothing under way any more, at the latest after so long?"""
        end = time.monotonic() + seconds
        with self._changed:
            while self._jobs and time.monotonic() < end:
                self._changed.wait(0.2)
            return not self._jobs

    def _run(self, job: Callable[[], object], nbytes: int) -> None:
        try:
            if not self.stopped:
                job()
        except BaseException as error:  # noqa: BLE001  whoever waits raises it
            self._error = self._error or error
            self.stopped = True
        with self._changed:
            self._jobs, self.nbytes = self._jobs - 1, self.nbytes - nbytes
            self._changed.notify_all()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


class Transfer(Protocol):
    """An object that is about to be in a store. One thread calls it."""

    def finish(self) -> None:
        """All that was begun is done: the object is there."""

    def abort(self) -> None:
        """Nothing is left of what is not yet an object; raises what keeps it from going."""


class Upload(Transfer, Protocol):
    """An object that is being written."""

    def write(self, data: memoryview, at: int) -> None:
        """Send `data`, which stands at the offset; the caller may then use its memory again."""


def upload(store: Writable, path: str, nbytes: int, outbox: Outbox) -> Upload:
    """The object of `nbytes` bytes that is to be at `path` of the store."""
    kind = _InParts if store.takes_parts else _InOrder
    return kind(store, path, nbytes, outbox)


def move(store: Writable, old: str, new: str, nbytes: int, outbox: Outbox) -> Transfer:
    """The object at `old`, on its way to `new`; no byte comes through here.

    What is at `new` is replaced. The one at `old` may stay.
    """
    kind = _Copied if store.takes_parts else _Moved
    return kind(store, old, new, nbytes, outbox)


class _Multipart:
    """A multipart upload to S3, begun when it is first needed.

    Until it is completed nobody sees it. Aborting it removes what was sent.
    """

    def __init__(self, store: Writable, path: str) -> None:
        self._store, self._path = store, path
        self._lock = threading.Lock()
        self._id = ""
        self._tags: dict[int, str] = {}  # by number, from 1

    def send(self, method: str, number: int, **words: Any) -> None:
        """Make a part, by a method that answers with its ETag somewhere."""
        with self._lock:
            if not self._id:
                self._id = self._store.s3("create_multipart_upload", self._path)["UploadId"]
        which = {"PartNumber": number, "UploadId": self._id}
        answer = self._store.s3(method, self._path, **which, **words)
        self._tags[number] = answer.get("CopyPartResult", answer)["ETag"]

    def finish(self) -> None:
        if self._id:
            parts = [{"PartNumber": n, "ETag": tag} for n, tag in sorted(self._tags.items())]
            words = {"UploadId": self._id, "MultipartUpload": {"Parts": parts}}
            self._store.s3("complete_multipart_upload", self._path, **words)
            self._id = ""

    def abort(self) -> None:
        if self._id:
            with contextlib.suppress(FileNotFoundError):
                self._store.once("abort_multipart_upload", self._path, UploadId=self._id)


class _Part:
    """Bytes of an object that are not yet all here."""

    def __init__(self, nbytes: int) -> None:
        self.body = io.BytesIO(bytes(nbytes))  # what libraries send without a copy
        self.data = self.body.getbuffer()
        self.nbytes = self.missing = nbytes


class _InParts:
    """An object for S3: one request if it is small, else a multipart upload."""

    def __init__(self, store: Writable, path: str, nbytes: int, outbox: Outbox) -> None:
        self._store, self._path, self._nbytes, self._outbox = store, path, nbytes, outbox
        self._size = part_nbytes(nbytes)
        self._parts: dict[int, _Part] = {}  # those that have holes, by number
        self._multipart = _Multipart(store, path)
        if not nbytes:
            self._send(0, _Part(0))

    def write(self, data: memoryview, at: int) -> None:
        while data:
            number, start = divmod(at, self._size)
            if number not in self._parts:
                left = self._nbytes - number * self._size
                self._parts[number] = _Part(min(self._size, left))
            part = self._parts[number]
            piece = data[: part.nbytes - start]
            part.data[start : start + len(piece)] = piece
            part.missing -= len(piece)
            if not part.missing:
                del self._parts[number]
                self._send(number, part)
            data, at = data[len(piece) :], at + len(piece)

    def _send(self, number: int, part: _Part) -> None:
        self._outbox.submit(functools.partial(self._sent, number, part), part.nbytes)

    def _sent(self, number: int, part: _Part) -> None:
        if self._nbytes > self._size:
            self._multipart.send("upload_part", number + 1, Body=part.body)
        else:
            self._store.s3("put_object", self._path, Body=part.body)
        traffic.add(sent=part.nbytes)

    def finish(self) -> None:
        self._multipart.finish()

    def abort(self) -> None:
        self._multipart.abort()


class _InOrder:
    """An object that is sent from front to back by the store's own file."""

    def __init__(self, store: Writable, path: str, nbytes: int, _outbox: Outbox) -> None:
        self._store, self._path, self._nbytes = store, path, nbytes
        self._done = 0
        self._file = store.create(path, _PART)
        self._end()

    def write(self, data: memoryview, at: int) -> None:
        if at != self._done:
            raise ValueError(f"byte {at} comes after byte {self._done}")
        self._store.asked(lambda: self._file.write(data))
        traffic.add(sent=len(data))
        self._done += len(data)
        self._end()

    def _end(self) -> None:
        if self._done == self._nbytes:
            self._store.asked(self._file.close)

    def finish(self) -> None:
        self._store.check_nbytes(self._path, self._nbytes)

    def abort(self) -> None:
        with contextlib.suppress(Exception):  # each store has its own kinds
            self._file.close()


class _Copied:
    """An object that S3 copies by itself, in parts if it is large."""

    def __init__(self, store: Writable, old: str, new: str, nbytes: int, outbox: Outbox) -> None:
        bucket, key = store.bucket_and_key(old)
        source = {"CopySource": {"Bucket": bucket, "Key": key}}
        self._multipart = _Multipart(store, new)
        if nbytes <= _COPIED_WHOLE:
            outbox.submit(functools.partial(store.s3, "copy_object", new, **source))
            return
        size = max(_COPIED, -(-nbytes // _MOST_PARTS))
        for number, first in enumerate(range(0, nbytes, size), 1):
            span = f"bytes={first}-{min(first + size, nbytes) - 1}"
            words = {**source, "CopySourceRange": span}
            send = self._multipart.send
            outbox.submit(functools.partial(send, "upload_part_copy", number, **words))

    def finish(self) -> None:
        self._multipart.finish()

    def abort(self) -> None:
        self._multipart.abort()


class _Moved:
    """An object that the store renames, or copies and removes."""

    def __init__(self, store: Writable, old: str, new: str, nbytes: int, _outbox: Outbox) -> None:
        self._store, self._new, self._nbytes = store, new, nbytes
        store.move(old, new)

    def finish(self) -> None:
        self._store.check_nbytes(self._new, self._nbytes)

    def abort(self) -> None:
        """What is there may be removed, as anything else."""


def part_nbytes(nbytes: int) -> int:
    """The size of an upload's parts: so large that they are not too many."""
    needed = -(-nbytes // _MOST_PARTS)
    return max(_PART, -(-needed // (1 << 20)) << 20)

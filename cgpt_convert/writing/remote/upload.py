"""Upload objects in parts, concurrently and with bounded memory.

A part may have a gap that is filled later, for example by a checksum that precedes the data it
covers. S3 accepts parts in any order; other stores accept sequential writes only.
"""

from __future__ import annotations

import contextlib
import functools
import io
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from cgpt_convert.core.threads import Event
from cgpt_convert.sources.remote.remote_settings import traffic
from cgpt_convert.sources.remote.retry import FetchWorkers
from cgpt_convert.writing.remote.store import WritableStore

MEMORY = 32 << 20  # bytes; limit of all parts being sent
_PART = 8 << 20  # bytes; S3 requires at least 5 MiB
_LOOK = 0.2  # seconds between checks while waiting
_MOST_PARTS = 10_000  # limit of parts per S3 upload
_COPIED = 256 << 20  # bytes per part of a server-side copy
_COPIED_WHOLE = 5 << 30  # bytes; S3's limit for a copy in one request

_workers = FetchWorkers()


class SendQueue:
    """Send jobs, several at a time if `parallel`. The first error stops them all."""

    def __init__(self, *, parallel: bool) -> None:
        self._parallel = parallel
        # not a Condition: a KeyboardInterrupt inside of it can leave its lock taken
        self._lock = threading.Lock()
        self._changed = Event()  # set when a job ends; replaced by a new one
        self._jobs = self.nbytes = 0  # not yet done
        self._error: BaseException | None = None
        self.stopped = False

    def submit(self, job: Callable[[], object], nbytes: int = 0) -> None:
        """Run `job`, which uses `nbytes` of memory, as soon as that fits the limit.

        Raises the error of an earlier job.
        """
        if not self._parallel:
            job()
            return
        self._until(lambda: self._takes(nbytes))
        _workers.submit(functools.partial(self._run, job, nbytes))

    def wait(self) -> None:
        """Wait for all jobs; raise the first error."""
        self._until(lambda: not self._jobs or self.stopped)
        self._check()

    def stop(self) -> None:
        """Start no further jobs."""
        self.stopped = True

    def is_done(self, seconds: float) -> bool:
        """Wait at most `seconds` for running jobs; return whether all have ended."""
        end = time.monotonic() + seconds
        self._until(lambda: not self._jobs or time.monotonic() >= end)
        return not self._jobs

    def _until(self, done: Callable[[], bool]) -> None:
        """Wait until `done` returns True; it is called again when a job has ended."""
        while True:
            changed = self._changed
            if done():
                return
            changed.wait(_LOOK)

    def _takes(self, nbytes: int) -> bool:
        """Add a job to the count if it fits the limit; raise the error of an earlier job."""
        with self._lock:
            if self._jobs and self.nbytes + nbytes > MEMORY and not self.stopped:
                return False
            self._check()
            self._jobs, self.nbytes = self._jobs + 1, self.nbytes + nbytes
            return True

    def _run(self, job: Callable[[], object], nbytes: int) -> None:
        try:
            if not self.stopped:
                job()
        except BaseException as error:  # noqa: BLE001  the waiting thread raises it
            self._error = self._error or error
            self.stopped = True
        with self._lock:
            self._jobs, self.nbytes = self._jobs - 1, self.nbytes - nbytes
            changed, self._changed = self._changed, Event()
        changed.set()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


class Transfer(Protocol):
    """An upload or copy in progress. It is called by one thread."""

    def finish(self) -> None:
        """Complete the object once all its requests have ended."""

    def abort(self) -> None:
        """Remove an incomplete object; raises the error if that fails."""


class Upload(Transfer, Protocol):
    """An object being written."""

    def write(self, data: memoryview, at: int) -> None:
        """Send `data` for the offset. The caller may reuse its memory afterwards."""


def upload(store: WritableStore, path: str, nbytes: int, outbox: SendQueue) -> Upload:
    """Start an upload of an object with `nbytes` bytes to `path` in the store."""
    kind = _PartedUpload if store.takes_parts else _SequentialUpload
    return kind(store, path, nbytes, outbox)


def move(store: WritableStore, old: str, new: str, nbytes: int, outbox: SendQueue) -> Transfer:
    """Start a server-side move of the object at `old` to `new`.

    An object at `new` is replaced. The one at `old` may remain.
    """
    kind = _ServerCopy if store.takes_parts else _ServerMove
    return kind(store, old, new, nbytes, outbox)


class _Multipart:
    """A multipart upload to S3, started when first needed.

    The object is invisible until the upload is completed. Aborting removes the parts that were
    sent.
    """

    def __init__(self, store: WritableStore, path: str) -> None:
        self._store, self._path = store, path
        self._lock = threading.Lock()
        self._id = ""
        self._tags: dict[int, str] = {}  # by number, from 1

    def send(self, method: str, number: int, **words: Any) -> None:
        """Send a part, with a method whose response contains its ETag."""
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
    """A part of an object whose bytes are not yet complete."""

    def __init__(self, nbytes: int) -> None:
        self.body = io.BytesIO(bytes(nbytes))  # libraries send it without a copy
        self.data = self.body.getbuffer()
        self.nbytes = self.missing = nbytes


class _PartedUpload:
    """An object for S3: a single request if it is small, else a multipart upload."""

    def __init__(self, store: WritableStore, path: str, nbytes: int, outbox: SendQueue) -> None:
        self._store, self._path, self._nbytes, self._outbox = store, path, nbytes, outbox
        self._size = part_nbytes(nbytes)
        self._parts: dict[int, _Part] = {}  # incomplete parts, by number
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


class _SequentialUpload:
    """An object written sequentially through the store's own file."""

    def __init__(self, store: WritableStore, path: str, nbytes: int, _outbox: SendQueue) -> None:
        self._store, self._path, self._nbytes = store, path, nbytes
        self._done = 0
        self._file = store.create(path, _PART)
        self._end()

    def write(self, data: memoryview, at: int) -> None:
        if at != self._done:
            raise ValueError(f"offset {at:,} does not continue the {self._done:,} bytes written")
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


class _ServerCopy:
    """An object that S3 copies on the server, in parts if it is large."""

    def __init__(
        self, store: WritableStore, old: str, new: str, nbytes: int, outbox: SendQueue
    ) -> None:
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


class _ServerMove:
    """An object that the store renames, or copies and removes."""

    def __init__(
        self, store: WritableStore, old: str, new: str, nbytes: int, _outbox: SendQueue
    ) -> None:
        self._store, self._new, self._nbytes = store, new, nbytes
        store.move(old, new)

    def finish(self) -> None:
        self._store.check_nbytes(self._new, self._nbytes)

    def abort(self) -> None:
        """Do nothing; the caller removes the object like any other."""


def part_nbytes(nbytes: int) -> int:
    """Return the part size of an upload, large enough to stay within the part limit."""
    needed = -(-nbytes // _MOST_PARTS)
    return max(_PART, -(-needed // (1 << 20)) << 20)

"""Remote objects as sources: few requests to inspect, parallel ones to stream, bounded memory.

Reads are served from fetched ranges. A read outside them fetches a new range: small for small
reads, twice the previous size for sequential ones. For long sequential reads, ranges are
prefetched.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence

from cgpt_convert.sources.local import outside
from cgpt_convert.sources.remote.remote_object import HEAD, RemoteObject
from cgpt_convert.sources.remote.remote_settings import traffic
from cgpt_convert.sources.remote.retry import Fetch, patiently, workers

MEMORY = 64 << 20  # bytes of all ranges that are kept
_BLOCK = 4 << 20  # the longest range
_SMALL = 16 << 10  # the shortest
_TAIL = 128 << 10  # bytes at the end, which include a ZIP's directory
_LONG = 64 << 10  # reads of at least this size are for data, not structure
_AHEAD = 4  # ranges
_SOON = 16  # reads
_GAP = 4 << 10  # gaps up to this size are fetched with their neighbours

_lock = threading.RLock()  # over everything below, and the ranges of all files
_kept: OrderedDict[Fetch, RemoteFile] = OrderedDict()  # least recently used first
_interrupts = itertools.count(1)
_epoch = [0]  # changes with every Ctrl-C, which ends waits on files opened before


class RemoteFile:
    """The bytes of a remote object; `readinto` may be called from any thread."""

    distant = True  # see source.is_distant

    def __init__(self, thing: RemoteObject, head: int = HEAD) -> None:
        self.name = thing.name
        self._thing = thing
        self._epoch = _epoch[0]
        self.nbytes, data = patiently(thing.name, functools.partial(thing.open, head))
        self._starts: list[int] = []
        self._fetches: list[Fetch] = []  # sorted, none overlaps another
        self._plan: list[tuple[int, int]] = []  # ranges to read, in order
        self._planned: list[tuple[int, int]] = []  # the same: start and number, sorted
        self._begun: set[int] = set()  # numbers of planned ranges already started
        self._sizes: OrderedDict[int, int] = OrderedDict()  # end of a range -> its size
        traffic.add(total=self.nbytes)
        if data:
            first = Fetch(thing, 0, len(data))
            first.arrived(data)
            with _lock:
                self._insert(first)
                self._touch(first)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        if offset < 0 or offset + len(buffer) > self.nbytes:
            raise outside(self.name, self.nbytes, offset, len(buffer))
        done, wanted = 0, len(buffer)
        while done < wanted:
            at = offset + done
            fetch = self._covering(at, wanted - done, is_long=wanted >= _LONG)
            data = self._wait(fetch)
            piece = memoryview(data)[at - fetch.start : at - fetch.start + wanted - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    def check_unchanged(self) -> None:
        """Raise Unreadable if the object is no longer the version that was opened."""
        self._thing.check_unchanged()

    def close(self) -> None:
        """Drop the cached ranges."""
        with _lock:
            for fetch in self._fetches:
                _kept.pop(fetch, None)
            self._fetches, self._starts = [], []

    def _wait(self, fetch: Fetch) -> bytes:
        try:
            return fetch.wait(lambda: self._epoch != _epoch[0])
        except KeyboardInterrupt:
            _epoch[0] = next(_interrupts)
            raise
        finally:
            if fetch.failed:
                with _lock:
                    self._drop(fetch)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Plan the fetches for future reads, given as offset and size in order.

        Adjacent small ranges are fetched together if they are read at nearly the same time.
        """
        runs: list[list[int]] = []
        turn = -_SOON  # of the range before
        ranges = [(offset, nbytes) for offset, nbytes in ranges if nbytes]
        for (offset, nbytes), now in sorted((each, turn) for turn, each in enumerate(ranges)):
            near = runs and offset - runs[-1][1] <= _GAP and abs(now - turn) <= _SOON
            if near and nbytes < _BLOCK // 4:
                runs[-1][1] = max(runs[-1][1], offset + nbytes)
            else:
                runs.append([offset, offset + nbytes])
            turn = now
        blocks = [
            (at, min(at + _BLOCK, end)) for start, end in runs for at in range(start, end, _BLOCK)
        ]
        order: dict[int, None] = {}
        for offset, nbytes in ranges:
            first = bisect.bisect_right(blocks, (offset, self.nbytes)) - 1
            last = bisect.bisect_left(blocks, (offset + nbytes,))
            order.update(dict.fromkeys(range(first, last)))
        with _lock:
            self._plan = [blocks[i] for i in order]
            self._planned = sorted((start, i) for i, (start, _) in enumerate(self._plan))
            self._begun = set()

    def _block(self, at: int) -> int | None:
        """Return the number of the planned range that contains byte `at`; None if there is none."""
        index = bisect.bisect_right(self._planned, (at, len(self._plan))) - 1
        if index < 0:
            return None
        number = self._planned[index][1]
        return number if at < self._plan[number][1] else None

    def _covering(self, at: int, wanted: int, *, is_long: bool) -> Fetch:
        """Return the range that contains byte `at`, fetching it if needed; start prefetching."""
        with _lock:
            fetch = self._find(at) or self._begin(at, wanted, is_long=is_long)
            is_first = not fetch.touched
            self._touch(fetch)
            if is_first:  # only once per range: there may be 100,000s of small reads
                self._begin_ahead(fetch, at, is_long=is_long)
                _forget()
        return fetch

    def _find(self, at: int) -> Fetch | None:
        index = bisect.bisect_right(self._starts, at) - 1
        if index >= 0 and at < self._fetches[index].end:
            return self._fetches[index]
        return None

    def _begin(self, at: int, wanted: int, *, is_long: bool) -> Fetch:
        index = bisect.bisect_right(self._starts, at)
        before = self._fetches[index - 1].end if index else 0
        limit = self._starts[index] if index < len(self._starts) else self.nbytes
        number = self._block(at)
        if number is not None:
            self._begun.add(number)
            return self._submit(at, min(self._plan[number][1], limit))
        size = max(wanted, 2 * self._sizes.get(at, 0), _SMALL)
        size = min(size, _BLOCK if is_long else max(wanted, _BLOCK // 4))
        start, end = at, min(at + min(size, _BLOCK), limit)
        if at + wanted == self.nbytes and wanted < _TAIL:
            start, end = max(before, self.nbytes - _TAIL, 0), self.nbytes
        return self._submit(start, end)

    def _submit(self, start: int, end: int) -> Fetch:
        fetch = Fetch(self._thing, start, end)
        workers.submit(fetch.run)
        self._insert(fetch)
        return fetch

    def _begin_ahead(self, fetch: Fetch, at: int, *, is_long: bool) -> None:
        """Prefetch what is planned, or likely, to be read after byte `at`."""
        untouched = sum(each.end - each.start for each in _kept if not each.touched)
        number = self._block(at)
        if number is not None:
            for ahead in range(number + 1, min(number + 1 + _AHEAD, len(self._plan))):
                start = self._plan[ahead][0]
                if ahead not in self._begun and untouched < MEMORY // 2:
                    self._begun.add(ahead)
                    if self._find(start) is None:
                        untouched += _BLOCK
                        self._begin(start, _BLOCK, is_long=True)
            return
        if not is_long or self._sizes.get(fetch.start, 0) < _BLOCK // 4:
            return
        end = fetch.end
        for _ in range(_AHEAD):
            if end >= self.nbytes or untouched >= MEMORY // 2:
                return
            following = self._find(end)
            if following is None:
                following = self._begin(end, _BLOCK, is_long=True)
                untouched += _BLOCK
            end = following.end

    def _insert(self, fetch: Fetch) -> None:
        index = bisect.bisect_right(self._starts, fetch.start)
        self._starts.insert(index, fetch.start)
        self._fetches.insert(index, fetch)
        self._sizes[fetch.end] = fetch.end - fetch.start
        if len(self._sizes) > _STREAMS:
            self._sizes.popitem(last=False)
        _kept[fetch] = self

    def _touch(self, fetch: Fetch) -> None:
        fetch.touched = True
        if fetch in _kept:
            _kept.move_to_end(fetch)

    def _drop(self, fetch: Fetch) -> None:
        if _kept.pop(fetch, None) is not None:
            index = self._fetches.index(fetch)
            del self._fetches[index], self._starts[index]


_STREAMS = 256  # tracked positions of sequential reads


def _forget() -> None:
    """Drop ranges until the rest fits: used ones first, least recently used first."""
    over = sum(fetch.end - fetch.start for fetch in _kept) - MEMORY
    if over <= 0:
        return
    latest = next(reversed(_kept))
    for fetch in sorted(_kept, key=lambda each: not each.touched):  # stable: in order of use
        if over <= 0:
            return
        if fetch.is_ready and fetch is not latest:
            _kept[fetch]._drop(fetch)  # noqa: SLF001  of this module
            over -= fetch.end - fetch.start

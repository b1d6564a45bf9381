"""Deflated members of a zip, which can only be unpacked forward."""

from __future__ import annotations

import threading
import weakref
import zlib
from collections import deque

from cgpt_convert.errors import Malformed, Unreadable
from cgpt_convert.source import CHUNK, Source, read
from cgpt_convert.spool import Spool

TURNS = 4  # times that reading backwards starts again; then all that is unpacked is kept
_KEPT = 4  # members of which it is kept, the last ones: as many as threads may be reading
_keeping: deque[weakref.ref[Deflated]] = deque()


class Deflated:
    """A deflated member, inflated as it is read.

    Reading backwards starts again from its start. After a few times what it unpacks to goes into a
    temporary file, if there is room for it: elements that lie far apart would take an unpacking
    each, and a small file can have thousands of them.
    """

    def __init__(
        self, source: Source, offset: int, compressed: int, nbytes: int, name: str
    ) -> None:
        self.name = name
        self.nbytes = nbytes
        self._source, self._offset, self._compressed = source, offset, compressed
        self._lock = threading.Lock()  # the position is shared by all who read
        self._turns = 0  # times that it was read backwards
        self._kept: Spool | None = None
        self._rewind()

    def _rewind(self) -> None:
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._taken = 0  # compressed bytes read
        self._position = 0  # inflated bytes delivered

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the inflated bytes."""
        with self._lock:
            kept = self._kept
            if kept is None and offset < self._position:
                kept = self._turn_back()
            if kept:
                kept.readinto(offset, buffer)
            else:
                self._forward_to(offset, buffer)

    def _forward_to(self, offset: int, buffer: memoryview) -> None:
        while self._position < offset:
            self._next(min(CHUNK, offset - self._position))
        done = 0
        while done < len(buffer):
            piece = self._next(min(CHUNK, len(buffer) - done))
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    def _turn_back(self) -> Spool | None:
        self._rewind()
        self._turns += 1
        if self._turns != TURNS:
            return None
        try:
            self._kept = self._unpack()
        except (Malformed, Unreadable):  # damaged further on, or no room: as before, then
            pass
        else:
            _keeping.append(weakref.ref(self))
            if len(_keeping) > _KEPT and (oldest := _keeping.popleft()()):
                oldest.let_go()
        self._rewind()
        return self._kept

    def _unpack(self) -> Spool:
        """All of it."""
        spool = Spool(self.name)
        while self._position < self.nbytes:
            at = self._position
            spool.write(self._next(min(CHUNK, self.nbytes - at)), at)
        return spool

    def let_go(self) -> None:
        """Others need the room. Whoever is reading what was kept still has it."""
        self._turns = 0
        self._kept = None

    def _next(self, most: int) -> bytes:
        """At least one and at most `most` further inflated bytes."""
        while True:
            feed = self._inflate.unconsumed_tail
            if not feed and self._taken < self._compressed:
                feed = read(
                    self._source,
                    self._offset + self._taken,
                    min(CHUNK, self._compressed - self._taken),
                )
                self._taken += len(feed)
            if self._inflate.eof:
                raise Malformed("the deflated data ends early", where=self.name)
            try:  # without feed, too: of the last that was fed there may be bytes to come
                piece = self._inflate.decompress(feed, most)
            except zlib.error as error:
                raise Malformed(
                    f"the deflated data is damaged ({error})", where=self.name
                ) from error
            if piece:
                self._position += len(piece)
                return piece
            if not feed:
                raise Malformed("the deflated data ends early", where=self.name)

    def check_unchanged(self) -> None:
        """As the file it lies in."""
        self._source.check_unchanged()

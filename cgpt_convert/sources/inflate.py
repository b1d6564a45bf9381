"""Deflated ZIP members, which can be decompressed only from front to back."""

from __future__ import annotations

import threading
import zlib

from cgpt_convert.core.errors import Malformed
from cgpt_convert.sources.local import CHUNK, Source, read
from cgpt_convert.sources.temp_cache import NoTempSpace, SharedTempFile, TempFile

_WASTE = 2  # times its size that may be decompressed without use before a member is unpacked
_ENDS_EARLY = "the compressed data ends early"
SHELF = SharedTempFile()


class DeflatedMember:
    """A deflated member, decompressed as it is read.

    Reading backwards restarts at the beginning. Bytes decompressed without being requested are
    counted. If they exceed a limit, the whole member is decompressed into a temporary file, if
    there is room: distant elements would otherwise need one decompression each, and a small file
    can have thousands.
    """

    sequential = True

    def __init__(
        self, source: Source, offset: int, compressed: int, nbytes: int, name: str
    ) -> None:
        self.name = name
        self.nbytes = nbytes
        self.within = source
        self._source, self._offset, self._compressed = source, offset, compressed
        self._lock = threading.Lock()  # the position is shared by all readers
        self._wasted = 0  # bytes decompressed but not requested
        self._temp_file: tuple[TempFile, int] | None = None  # and the offset of the bytes in it
        self._end, self._damage = nbytes, ""  # the end of the unpacked bytes, and the error there
        self.rewind()

    @property
    def in_temp_file(self) -> bool:
        """Whether the bytes are in a temporary file."""
        return self._temp_file is not None

    def rewind(self) -> None:
        """Restart at the first byte."""
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._taken = 0  # compressed bytes read
        self._position = 0  # inflated bytes delivered

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the decompressed bytes."""
        with self._lock:
            if self._temp_file is None and offset < self._position:
                self.rewind()
                if self._wasted > _WASTE * self.nbytes:
                    self._unpack_all()
            unpacked, end, damage = self._temp_file, self._end, self._damage
            if unpacked is None:
                self._inflate_into(offset, buffer)
                return
        if offset + len(buffer) > end:
            raise Malformed(damage, where=self.name)
        temp_file, start = unpacked
        temp_file.readinto(start + offset, buffer)

    def _inflate_into(self, offset: int, buffer: memoryview) -> None:
        self._wasted += max(0, offset - self._position)
        while self._position < offset:
            self._next(min(CHUNK, offset - self._position))
        done = 0
        while done < len(buffer):
            piece = self._next(min(CHUNK, len(buffer) - done))
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    def _unpack_all(self) -> None:
        """Decompress the member, as far as possible, into a temporary file if there is room."""
        self._wasted = 0
        try:
            place = SHELF.place(self.nbytes, self)
            if place is None:
                return
            self._damage = self._unpack_into(*place)
        except NoTempSpace:
            SHELF.clear()
            self.rewind()
            return
        self._end = self._position
        self.rewind()
        SHELF.settle(self, place)

    def _unpack_into(self, temp_file: TempFile, start: int) -> str:
        """Write all decompressible bytes; return the error after the last of them."""
        most, damage = CHUNK, _ENDS_EARLY
        while most and self._position < self.nbytes:
            at, before = self._position, (self._inflate.copy(), self._taken)
            try:
                temp_file.write(self._next(min(most, self.nbytes - at)), start + at)
            except Malformed as error:  # the damage is somewhere in these bytes
                damage, most = error.message, most // 2
                self._inflate, self._taken = before
        return damage

    def hold(self, place: tuple[TempFile, int]) -> None:
        """Read from the temporary file from now on; the bytes start at `place`."""
        self._temp_file = place

    def let_go(self) -> None:
        """Release the temporary file. Reads in progress keep it open."""
        self._temp_file = None

    def _next(self, most: int) -> bytes:
        """Return at least one and at most `most` further decompressed bytes."""
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
                raise Malformed(_ENDS_EARLY, where=self.name)
            try:  # even without feed: previous input may still produce bytes
                piece = self._inflate.decompress(feed, most)
            except zlib.error as error:
                message = f"the compressed data is damaged ({error})"
                raise Malformed(message, where=self.name) from error
            if piece:
                self._position += len(piece)
                return piece
            if not feed:
                raise Malformed(_ENDS_EARLY, where=self.name)

    def check_unchanged(self) -> None:
        """Check the file that contains the member."""
        self._source.check_unchanged()

"""Sources inside other sources: a part of one, or the decompressed bytes of a part."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.limits import UNPACKED, UNPACKED_FLOOR
from cgpt_convert.sources.compression import MEMORY_MIB, CompressionMethod, exceeds_memory
from cgpt_convert.sources.local import CHUNK, Source, outside, read

_FEED = 16 << 10  # compressed bytes per step: a stream's unused input is copied for the next one
_POINTS = 256  # maximum number of saved states; each takes about 50 KiB
_DECOMPRESS = "decompress the file and scan the result"


class SourceSlice:
    """The `nbytes` bytes from `offset` of another source."""

    def __init__(self, source: Source, offset: int, nbytes: int, name: str) -> None:
        self.source, self.offset, self.nbytes, self.name = source, offset, nbytes, name
        self.within = source

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        if offset < 0 or offset + len(buffer) > self.nbytes:
            raise outside(self.name, self.nbytes, offset, len(buffer))
        self.source.readinto(self.offset + offset, buffer)

    def check_unchanged(self) -> None:
        """Check the enclosing source."""
        self.source.check_unchanged()


class UnpackLimit:
    """The remaining decompression budget for a file of `nbytes` bytes and everything inside it."""

    def __init__(self, nbytes: int) -> None:
        self.most = self.left = UNPACKED_FLOOR + UNPACKED * nbytes

    def take(self, nbytes: int, where: str) -> None:
        """Count decompressed bytes. Raises Unsupported if the budget is exceeded."""
        self.left -= nbytes
        if self.left < 0:
            raise Unsupported(
                f"scanning the file requires decompressing more than {self.most:,} bytes",
                where=where,
                hint=_DECOMPRESS,
            )


class UnpackedPart:
    """A compressed part, decompressed as it is read.

    Reading backwards resumes from the last saved state, if the decompressor can be copied. `nbytes`
    is taken as given, or measured by decompressing everything. For damaged data, `nbytes` is the
    length that can be decompressed, and `damage` holds the error.
    """

    def __init__(
        self,
        packed: SourceSlice,
        start: Callable[[], Any],
        room: UnpackLimit,
        nbytes: int | None = None,
        *,
        padded: bool = True,
    ) -> None:
        self.name = packed.name
        self.damage: Malformed | None = None
        self.within = packed
        self._packed, self._start = packed, start
        self._several = nbytes is None  # streams, one after another
        self._padded = padded  # whether zeros may appear between streams
        self._room = room
        self._points: list[tuple[int, int, bytes, Any]] = []
        self._read, self._at = b"", 0  # the last compressed bytes read, and their offset
        self._spacing = CHUNK
        self._rewind()
        self.nbytes = self._measure() if nbytes is None else nbytes

    def _rewind(self) -> None:
        self._state = self._start()
        self._feed = b""
        self._taken = 0  # packed bytes fed
        self._position = 0  # unpacked bytes delivered
        self._stream = (0, 0)  # the same two at the start of the current stream
        self._broken: Malformed | None = None

    def _measure(self) -> int:
        try:
            while self._next(CHUNK):
                pass
        except Malformed as error:
            self.damage = error
        if not self._state.eof and not self.damage:
            self.damage = Malformed("the compressed data ends early", where=self.name)
        return self._position

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the decompressed bytes."""
        if offset < self._position:
            self._back_to(offset)
        done = 0
        while done < len(buffer):
            behind = max(offset - self._position, 0)
            piece = self._next(min(CHUNK, behind or len(buffer) - done))
            if not piece:
                raise Malformed("the compressed data ends early", where=self.name)
            if not behind:
                buffer[done : done + len(piece)] = piece
                done += len(piece)

    def _back_to(self, offset: int) -> None:
        kept = [point for point in self._points if point[0] <= offset]
        self._rewind()
        if kept:
            self._position, self._taken, self._feed, state = kept[-1]
            self._state = state.copy()

    def _next(self, most: int) -> bytes:
        """Return the next decompressed bytes, at most `most`; empty at the end."""
        while True:
            if self._state.eof and not self._another():
                return b""
            wanting = getattr(self._state, "needs_input", True)  # zlib does not say
            fed = self._feed or (self._more() if wanting else b"")
            piece = self.unpack(fed, most)
            if piece:
                self._advance(len(piece))
                return piece
            if wanting and not fed and not self._state.eof:
                return b""

    def _more(self) -> bytes:
        """Return compressed bytes not fed yet. Larger parts are read, as reads may be remote."""
        if not self._at <= self._taken < self._at + len(self._read):
            self._at = self._taken
            self._read = read(self._packed, self._at, min(CHUNK, self._packed.nbytes - self._at))
        start = self._taken - self._at
        fed = self._read[start : start + _FEED]
        self._taken += len(fed)
        return fed

    def _another(self) -> bool:
        """Start the stream after the one that ended; return whether there is one."""
        self._feed = self._state.unused_data or self._more()
        if not self._several:
            return False
        while self._feed and (self._padded or not any(self._feed)):
            stripped = self._feed.lstrip(b"\0")
            if stripped:
                self._feed = stripped
                break
            self._feed = self._more()
        if not self._feed:
            return False
        self._state = self._start()
        self._stream = (self._taken - len(self._feed), self._position)
        return True

    def unpack(self, fed: bytes, most: int) -> bytes:
        """Decompress `fed`, the next bytes of the stream; return at most `most` bytes."""
        import lzma

        if self._broken:
            raise self._broken
        before = self._state.copy() if hasattr(self._state, "copy") else None
        try:
            piece: bytes = self._state.decompress(fed, most)
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            if exceeds_memory(error):
                raise _dictionary_too_large(self.name) from error
            message = f"the compressed data is damaged ({error})"
            self._broken = Malformed(message, where=self.name)
            piece = _until_error(before, fed) if before else self._until_error()
            if not piece:
                raise self._broken from error
        except MemoryError as error:  # the dictionary is within the limit, the free memory is not
            raise _dictionary_too_large(self.name) from error
        self._feed = getattr(self._state, "unconsumed_tail", b"")
        return piece

    def _until_error(self) -> bytes:
        """Return the further bytes that reading byte by byte gets from the damaged stream."""
        import lzma

        at, position = self._stream
        state, output = self._start(), bytearray()
        try:
            while len(output) < _FEED and not state.eof:
                fed = b""
                if state.needs_input:
                    fed = read(self._packed, at, min(_FEED, self._packed.nbytes - at))
                    at += len(fed)
                    if not fed:
                        break
                piece = state.decompress(fed, min(CHUNK, max(self._position - position, 1)))
                if position >= self._position:
                    output += piece
                position += len(piece)
        except (lzma.LZMAError, OSError, EOFError):
            pass
        return bytes(output)

    def _advance(self, nbytes: int) -> None:
        self._position += nbytes
        self._room.take(nbytes, self.name)
        self._keep_point()

    def _keep_point(self) -> None:
        last = self._points[-1][0] if self._points else 0
        if self._position < last + self._spacing or not hasattr(self._state, "copy"):
            return
        if len(self._points) == _POINTS:  # keep every second one: the file is larger than expected
            del self._points[::2]
            self._spacing *= 2
        self._points.append((self._position, self._taken, self._feed, self._state.copy()))

    def check_unchanged(self) -> None:
        """Check the enclosing source."""
        self._packed.check_unchanged()


def _until_error(state: Any, fed: bytes) -> bytes:
    """Return the bytes before zlib's error, which a reader of smaller pieces would get."""
    unpacked_bytes = bytearray()
    try:
        for byte in fed:
            unpacked_bytes += state.decompress(bytes((byte,)))
    except zlib.error:
        pass
    return bytes(unpacked_bytes)


def _dictionary_too_large(name: str) -> Unsupported:
    return Unsupported(
        f"decompressing the file requires more than {MEMORY_MIB} MiB of memory for its dictionary",
        where=name,
        hint=_DECOMPRESS,
    )


def inflated(packed: SourceSlice, nbytes: int, room: UnpackLimit) -> UnpackedPart:
    """Return the decompressed bytes of a deflated ZIP record."""
    return UnpackedPart(packed, lambda: zlib.decompressobj(-zlib.MAX_WBITS), room, nbytes)


def unpacked(source: Source, method: CompressionMethod, room: UnpackLimit) -> UnpackedPart:
    """Return the decompressed bytes of `source`. Raises Unsupported beyond the limits."""
    packed = SourceSlice(source, method.skip, source.nbytes - method.skip, source.name)
    return UnpackedPart(packed, method.start, room, padded=method.padded)

"""Sequential reading of a source that contains pickles and integers."""

from __future__ import annotations

from collections.abc import Callable

from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.limits import PICKLE
from cgpt_convert.pickles.decode.argument_reader import Incomplete
from cgpt_convert.pickles.decode.decoder import DecodedPickle, decode
from cgpt_convert.pickles.nodes import PersistentId, Value
from cgpt_convert.sources.local import Source, read

_FIRST = 4 << 10  # bytes tried first; most pickles of these containers are shorter
_LARGE = 1 << 20


class Truncated(Malformed):
    """The data ends too early; the complete file might be valid."""


class PickleStream:
    """A position in the bytes `at` to `end` of a source. `part` names an item in errors."""

    def __init__(self, source: Source, at: int = 0, end: int | None = None) -> None:
        self.source = source
        self.at = at
        self.end = source.nbytes if end is None else end

    def unpickle(
        self, part: str, persistent: Callable[[Value], Value] = PersistentId, first: int = _FIRST
    ) -> DecodedPickle:
        """Decode the pickle at the current position and move past it.

        Its length is known only after decoding, so `persistent` may be called more than once for
        the same reference.
        """
        place = f"{self.source.name}[{part}]"
        size = first
        while True:
            window = min(size, self.end - self.at, PICKLE.nbytes)
            data = read(self.source, self.at, window)
            try:
                decoded = decode(data, persistent=persistent)
            except Incomplete as error:
                if window == self.end - self.at:
                    raise Truncated(error.message, where=place) from None
                if window == PICKLE.nbytes:
                    message = f"the pickle has more bytes than the limit of {window:,}"
                    raise Unsupported(message, where=place) from None
                size *= 16 if size < _LARGE else 4  # each attempt decodes from the start
            except CgptError as error:
                raise error.at(place) from None
            else:
                self.at += decoded.end
                return decoded

    def integer(self, nbytes: int = 8) -> int:
        """Read a signed little-endian integer of `nbytes` bytes and move past it."""
        self.need(nbytes)
        value = int.from_bytes(read(self.source, self.at, nbytes), "little", signed=True)
        self.at += nbytes
        return value

    def skip(self, nbytes: int) -> int:
        """Move past the next `nbytes` bytes and return their offset."""
        self.need(nbytes)
        self.at += nbytes
        return self.at - nbytes

    def need(self, nbytes: int) -> None:
        """Raise Truncated unless `nbytes` bytes are left."""
        if nbytes > self.end - self.at:
            needed = f"bytes {self.at:,} to {self.at + nbytes:,} are needed"
            message = f"{needed}, but the data ends at byte {self.end:,}"
            raise Truncated(message, where=self.source.name)

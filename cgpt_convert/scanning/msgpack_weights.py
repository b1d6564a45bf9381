"""Recognise the weights that Flax writes: a MessagePack tree of nothing but data.

The MessagePack specification, "Formats"; flax/serialization.py: extension types 1 (array),
2 (complex number) and 3 (NumPy scalar). Reading such a file calls nothing that it names.
"""

from __future__ import annotations

from cgpt_convert.core.errors import Malformed
from cgpt_convert.pickles.trace.cursor import OpcodeReader, UnpicklingFault
from cgpt_convert.sources.local import Source, read

_MAPS = (*range(0x81, 0x90), 0xDE, 0xDF)  # first bytes of maps that are not empty
_DEEP = 200  # msgpack itself takes 1024, of which one level is many
_MOST = 10_000_000  # values
_PLAIN = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8}  # nil, false, true, floats -> width
_PLAIN |= {first + power: 1 << power for first in (0xCC, 0xD0) for power in range(4)}  # integers
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes, text -> width of a length
_SHORT = range(0xA0, 0xC0)  # texts of up to 31 bytes
_BYTES = (0xC4, 0xC5, 0xC6)
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED = {0xD4 + power: 1 << power for power in range(5)}  # extensions -> length
_DTYPES = frozenset(
    b"bool int4 int8 int16 int32 int64 uint4 uint8 uint16 uint32 uint64 float16 float32 float64 "
    b"bfloat16 complex64 complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz "
    b"float8_e4m3b11fnuz".split()
)
_LONGEST = 64  # bytes of a type's name


def is_weights(source: Source) -> bool:
    """Return whether the file is exactly one tree of maps and lists with arrays."""
    if source.nbytes == 0 or read(source, 0, 1)[0] not in _MAPS:
        return False
    tree = _MsgpackTree(OpcodeReader(source))
    try:
        tree.walk()
    except Malformed:
        return False
    return tree.arrays > 0 and tree.data.at == source.nbytes


class _MsgpackTree:
    def __init__(self, data: OpcodeReader) -> None:
        self.data = data
        self.arrays = 0
        self.values = 0

    def walk(self) -> None:
        """Go through all values. Raises Malformed for any that Flax does not write."""
        left: list[tuple[int, bool]] = [(1, False)]  # values of each open map or list; is it a map
        while left:
            count, keyed = left.pop()
            if not count:
                continue
            left.append((count - 1, keyed))
            if keyed:
                self.key()
            opened = self.value()
            if opened is not None:
                left.append(opened)
                if len(left) > _DEEP:
                    raise UnpicklingFault("nested too deeply")

    def value(self) -> tuple[int, bool] | None:
        """Read a value, or the length of a map (True) or list."""
        self.values += 1
        if self.values > _MOST:
            raise UnpicklingFault("too many values")
        code = self.data.next()
        if code <= 0x7F or code >= 0xE0:  # noqa: PLR2004  small integers
            return None
        if code in _PLAIN:
            self.data.skip(_PLAIN[code])
        elif code in _SIZED or code in _SHORT:
            self.data.skip(self.length(code))
        elif code in _EXTENSIONS or code in _FIXED:
            self.extension(code)
        else:
            return self.opened(code)
        return None

    def opened(self, code: int) -> tuple[int, bool]:
        """Return the number of values of a map or list."""
        if 0x80 <= code <= 0x9F:  # noqa: PLR2004
            return code & 0x0F, code < 0x90  # noqa: PLR2004
        if code in (0xDC, 0xDD, 0xDE, 0xDF):
            return self.number(2 if code in (0xDC, 0xDE) else 4), code >= 0xDE  # noqa: PLR2004
        raise UnpicklingFault("no such code")

    def number(self, width: int) -> int:
        return int.from_bytes(self.data.take(width), "big")

    def length(self, code: int) -> int:
        """Return the length of text or bytes."""
        if code in _SIZED:
            return self.number(_SIZED[code])
        if code in _SHORT:
            return code & 0x1F
        raise UnpicklingFault("neither text nor bytes")

    def key(self) -> None:
        """Read a key, which is text."""
        code = self.data.next()
        if code in _BYTES:
            raise UnpicklingFault("a key is not text")
        self.data.skip(self.length(code))

    def extension(self, code: int) -> None:
        """Read an array, a complex number or a scalar, and nothing else."""
        nbytes = _FIXED.get(code) or self.number(_EXTENSIONS[code])
        kind = self.data.next()
        end = self.data.at + nbytes
        if kind in (1, 3):
            self.array()
            self.arrays += 1
        elif kind == 2 and self.data.next() == 0x92:  # noqa: PLR2004  real and imaginary part
            for _ in range(2):
                if self.data.next() not in (0xCA, 0xCB):
                    raise UnpicklingFault("no complex number")
                self.data.skip(8)
        else:
            raise UnpicklingFault("no extension of Flax")
        if self.data.at != end:
            raise UnpicklingFault("an extension of another length")

    def array(self) -> None:
        """Read shape, name of the type and bytes."""
        if self.opened(self.data.next()) != (3, False):
            raise UnpicklingFault("no array")
        rank, keyed = self.opened(self.data.next())
        if keyed:
            raise UnpicklingFault("no shape")
        for _ in range(rank):
            code = self.data.next()
            if code > 0x7F:  # noqa: PLR2004
                if not 0xCC <= code <= 0xCF:  # noqa: PLR2004
                    raise UnpicklingFault("no size")
                self.data.skip(_PLAIN[code])
        code = self.data.next()
        nbytes = self.length(code)
        if nbytes > _LONGEST or self.data.take(nbytes) not in _DTYPES:
            raise UnpicklingFault("no type of elements")
        code = self.data.next()
        if code not in _BYTES:
            raise UnpicklingFault("no elements")
        self.data.skip(self.length(code))

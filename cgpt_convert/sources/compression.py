"""Detection of the compression formats that weight loaders open without an explicit name.

The formats are gzip, bz2, lzma and zlib of Python's standard library, and the additions of pandas
and joblib. Each is detected as leniently as the most lenient loader does: RFC 1950 and 1952, and
Python's gzip module, which ignores reserved flags and the header's checksum; the .lzma format of
the LZMA SDK ("lzma-file-format.txt" of XZ Utils).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

_LZMA_MEMORY = (
    136 << 20
)  # bytes: a dictionary of 128 MiB; `xz -9` uses 64 MiB, a header up to 4 GiB
_GZIP_HEADER = 1 << 20  # bytes: names and comments have no limit of their own
_GZIP_FIXED, _GZIP_TRAILER = 10, 8
_DEFLATE = 8  # the method, in gzip's header and in zlib's
_EXTRA, _NAME, _COMMENT, _HEADER_CRC = 4, 8, 16, 2
_ZFILE, _ZFILE_NBYTES = b"ZF", 21  # joblib before 0.10: a size in hexadecimal, then zlib data
_ALONE_NBYTES = 13  # properties, dictionary size, unpacked size
_UNKNOWN_SIZE, _LARGEST = (1 << 64) - 1, 1 << 38  # liblzma's auto decoder takes smaller ones only


class CompressionMethod(NamedTuple):
    """A decompression method. `start` makes a decompressor; the data starts at byte `skip`.

    If `certain` is False, files of other kinds may begin the same way by chance. `padded` is
    whether zeros may appear between two streams, `pickled` whether the loader that opens such files
    (joblib) unpickles them.
    """

    start: Callable[[], Any]
    certain: bool
    padded: bool = True
    skip: int = 0
    pickled: bool = False


def recognise(head: bytes) -> CompressionMethod | None:
    """Return how to decompress the file that begins with `head`; None if it is not compressed."""
    for magic, method in _BY_MAGIC:
        if head.startswith(magic):
            return method
    if len(head) > _ZFILE_NBYTES and head.startswith(_ZFILE) and _is_zfile(head):
        space = head[_ZFILE_NBYTES : _ZFILE_NBYTES + 1] == b" "
        return CompressionMethod(
            zlib.decompressobj, certain=True, skip=_ZFILE_NBYTES + space, pickled=True
        )
    if _is_zlib(head):
        return CompressionMethod(zlib.decompressobj, certain=False, pickled=True)
    if _is_lzma_alone(head):
        return CompressionMethod(_lzma_alone, certain=False, padded=False)
    return None


def _is_zfile(head: bytes) -> bool:
    try:
        int(head[len(_ZFILE) : _ZFILE_NBYTES], 16)
    except ValueError:
        return False
    return True


def _is_zlib(head: bytes) -> bool:
    """Check for an RFC 1950 header: deflate, any window, no preset dictionary, valid FCHECK."""
    if len(head) < 2:  # noqa: PLR2004  CMF and FLG
        return False
    method, flags = head[0], head[1]
    return method & 0x8F == _DEFLATE and not (method << 8 | flags) % 31 and not flags & 0x20


def _is_lzma_alone(head: bytes) -> bool:
    """Check for valid .lzma properties; the first byte of the data is always 0."""
    if len(head) <= _ALONE_NBYTES or head[_ALONE_NBYTES]:
        return False
    rest, literal_bits = divmod(head[0], 9)
    position_bits, literal_position_bits = divmod(rest, 5)
    if position_bits > 4 or literal_bits + literal_position_bits > 4:  # noqa: PLR2004  the format's
        return False
    if head[:2] == b"\x5d\0":  # joblib accepts any dictionary and size after it
        return True
    dictionary = int.from_bytes(head[1:5], "little")
    size = int.from_bytes(head[5:_ALONE_NBYTES], "little")
    low = dictionary & -dictionary
    usual = dictionary in (low, 3 * low, (1 << 32) - 1)  # 2^n or 2^n + 2^(n-1)
    return bool(dictionary) and usual and (size == _UNKNOWN_SIZE or size < _LARGEST)


class GzipDecompressor:
    """A decompressor for one gzip member, with the interface of zlib's decompressor."""

    def __init__(self) -> None:
        self.eof = False
        self.unused_data = self.unconsumed_tail = b""
        self._header = b""
        self._trailer = b""
        self._inflate: Any = None
        self._crc = self._size = 0

    def decompress(self, data: bytes, most: int = 0) -> bytes:
        """Return at most `most` decompressed bytes. Raises zlib.error for damaged data."""
        if self._inflate is None:
            self._header += data
            size = _gzip_header(self._header)
            if size is None:
                return b""
            data, self._header = self._header[size:], b""
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        if self._inflate.eof:
            self._finish(data)
            return b""
        piece: bytes = self._inflate.decompress(data, most)
        self._crc = zlib.crc32(piece, self._crc)
        self._size += len(piece)
        self.unconsumed_tail = self._inflate.unconsumed_tail
        if self._inflate.eof and not piece:
            self._finish(self._inflate.unused_data)
        elif self._inflate.eof:  # check the trailer after all bytes are delivered
            self.unconsumed_tail = self._inflate.unused_data
        return piece

    def _finish(self, data: bytes) -> None:
        self._trailer += data
        self.unconsumed_tail = b""
        if len(self._trailer) < _GZIP_TRAILER:
            return
        self.eof = True
        self.unused_data = self._trailer[_GZIP_TRAILER:]
        expected = self._crc.to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little")
        if self._trailer[:_GZIP_TRAILER] != expected:
            raise zlib.error("its checksum or size does not match")

    def copy(self) -> GzipDecompressor:
        """Return a decompressor in the same state."""
        other = GzipDecompressor()
        other.__dict__.update(self.__dict__)
        if self._inflate is not None:
            other._inflate = self._inflate.copy()
        return other


def _gzip_header(data: bytes) -> int | None:
    """Return the size of the gzip header at the start of `data`; None if it is incomplete."""
    if len(data) < _GZIP_FIXED:
        return None
    if data[:3] != b"\x1f\x8b\x08":
        raise zlib.error("a gzip header is not valid")
    flags, at = data[3], _GZIP_FIXED
    if flags & _EXTRA:
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            end = data.find(b"\0", at)
            if end < 0:
                at = len(data)
                break
            at = end + 1
    else:
        at += 2 * bool(flags & _HEADER_CRC)
        if at <= len(data):
            return at
    if len(data) > _GZIP_HEADER:
        raise zlib.error(f"a gzip header has more than {_GZIP_HEADER:,} bytes")
    return None


def _bzip2() -> Any:
    import bz2

    return bz2.BZ2Decompressor()


def _lzma() -> Any:
    import lzma

    return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)


def _lzma_alone() -> Any:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY)


def exceeds_memory(error: Exception) -> bool:
    """Return whether liblzma hit the memory limit, which has no exception type of its own."""
    return "Memory usage limit" in str(error)


MEMORY_MIB = _LZMA_MEMORY >> 20
_BY_MAGIC = (
    (b"\x1f\x8b", CompressionMethod(GzipDecompressor, certain=True)),
    (b"BZh", CompressionMethod(_bzip2, certain=True)),
    (b"\xfd7zXZ\0", CompressionMethod(_lzma, certain=True)),
    (b"LZIP", CompressionMethod(_lzma, certain=True)),
)

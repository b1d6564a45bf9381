"""Dequantization of ggml's block types to float32, as a source that computes bytes when read.

A view of the blocks becomes the same view of the computed bytes, so transposes and casts work as
for any tensor. The results are bit-identical to `dequantize_row_q8_0` and its siblings in
ggml/src/ggml-quants.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.tensors.dtypes import FLOAT32, NIBBLE, OCTET, DType, block_codec
from cgpt_convert.tensors.tensor import Storage, Tensor, replace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Octets = NDArray[np.uint8]
    Array = NDArray[Any]

CHUNK = 32 << 10  # elements at once: 128 KiB of float32 stay in the cache


def widened(tensor: Tensor) -> Tensor:
    """Return a block-quantized tensor with the same values in a float32 storage.

    Raises Unsupported for a view that is to be written as blocks but does not consist of whole
    blocks.
    """
    if tensor.target is None:
        raise Unsupported(
            f"the tensor is a view of {tensor.stored.name} data that does not consist of whole "
            "blocks in order",
            where=tensor.name,
            hint="add --dtype float32 to write numbers instead of blocks",
        )
    source = DequantizedStorage(tensor.storage, tensor.stored)
    storage = replace(tensor.storage, source=source, offset=0, nbytes=source.nbytes, crc32=None)
    target = None if tensor.target == FLOAT32 else tensor.target
    return replace(tensor, stored=FLOAT32, target=target, storage=storage)


class DequantizedStorage:
    """The float32 bytes of a block-quantized storage, computed as they are read."""

    def __init__(self, storage: Storage, dtype: DType) -> None:
        self.name = storage.source.name
        self.within = storage.source
        self.nbytes = storage.nbytes // dtype.nbytes * dtype.block * FLOAT32.nbytes
        self._storage, self._dtype = storage, dtype
        self._raw = np.empty(dtype.size(CHUNK), "|u1")
        self._wide = np.empty(CHUNK, "<f4")

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the float32 bytes from `offset`."""
        block = self._dtype.block * FLOAT32.nbytes
        done = 0
        while done < len(buffer):
            first, inside = divmod(offset + done, block)
            last = min(-(-(offset + len(buffer)) // block), first + CHUNK // self._dtype.block)
            values = self._blocks(first, last - first).view("|u1")[inside:]
            piece = min(len(values), len(buffer) - done)
            buffer[done : done + piece] = values[:piece].data
            done += piece

    def check_unchanged(self) -> None:
        """Raise Unreadable if the file has changed."""
        self._storage.source.check_unchanged()

    def _blocks(self, first: int, count: int) -> Floats:
        raw = self._raw[: count * self._dtype.nbytes]
        self._storage.readinto(first * self._dtype.nbytes, raw.data)
        wide = self._wide[: count * self._dtype.block]
        _decode(raw.reshape(count, -1), self._dtype, wide)
        return wide


def _decode(rows: Octets, dtype: DType, out: Floats) -> None:
    """Write the values of blocks, one per row, to `out`: code times scale, plus the minimum."""
    codec = block_codec(dtype)
    grid = out.reshape(len(rows), dtype.block)
    with np.errstate(all="ignore"):  # infinite scales propagate
        if codec.bits == OCTET:
            grid[...] = rows[:, 2:].view("|i1")
        else:
            grid[...] = _codes(rows, five_bits=codec.bits > NIBBLE)
            if not codec.minimum:
                out -= 1 << codec.bits - 1
        out *= np.repeat(_halves(rows, 0), dtype.block)
        if codec.minimum:
            out += np.repeat(_halves(rows, 1), dtype.block)


def _halves(rows: Octets, column: int) -> Floats:
    halves = np.ascontiguousarray(rows.view("<u2")[:, column])
    return halves.view("<f2").astype("<f4")


def _codes(rows: Octets, *, five_bits: bool) -> Array:
    """Return 4- or 5-bit codes, one per byte: elements 0 to 15 are low nibbles, the rest high."""
    codes = np.empty((len(rows), 2, 16), "|u1")
    nibbles = rows[:, -16:]
    np.bitwise_and(nibbles, 15, out=codes[:, 0])
    np.right_shift(nibbles, 4, out=codes[:, 1])
    flat = codes.reshape(len(rows), 32)
    if five_bits:
        fifth = np.unpackbits(np.ascontiguousarray(rows[:, -20:-16]), bitorder="little")
        flat |= fifth.reshape(flat.shape) << 4
    return flat

"""Reading of a tensor's elements in row-major order, little-endian, block by block.

Bytes already in that order are passed on as they are read, without importing NumPy. Any other view,
byte order or cast uses `gather` and `cast`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.sources.local import piece_nbytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from cgpt_convert.tensors.tensor import ByteRange, Tensor

    Tap = Callable[[memoryview], object] | None


@dataclass(slots=True)
class CastCounts:
    """Losses in casts so far: finite values that became infinite, nonzero ones that became zero."""

    overflowed: int = 0
    zeroed: int = 0


def of(
    tensor: Tensor, max_bytes: int, counts: CastCounts | None, tap: Tap = None, threads: int = 1
) -> Iterator[memoryview]:
    """Yield the elements in row-major order, little-endian, as `tensor.dtype`, in whole elements.

    A block has at most `max_bytes` bytes (but at least one element), often far fewer, and is valid
    until the next is requested. `counts` collects what a cast loses; None skips counting. `tap` is
    called with the elements before a cast, and not at all without a cast. `threads` is the number
    of threads that read tensors at the same time. Memory use is about three times `max_bytes`.
    Raises Unsupported for an unknown cast or lazy negation, Malformed or Unreadable if the bytes
    cannot be read.
    """
    extent = tensor.extent()
    if extent is None and tensor.stored.block > 1:
        from cgpt_convert.tensors import dequantize

        tensor = dequantize.widened(tensor)
        extent = tensor.extent()
    if extent is not None:
        return _stream(extent, tensor.dtype.nbytes, max_bytes)
    if tensor.dtype.block > 1:
        return _quantize(tensor, max_bytes, counts, tap, threads)
    return _arrange(tensor, max_bytes, counts, tap, threads)


def import_all() -> None:
    """Import the modules that are otherwise imported when a tensor first needs them."""
    for name in ("cast", "dequantize", "fixups", "gather", "quantize"):
        importlib.import_module(f"cgpt_convert.tensors.{name}")


def array(tensor: Tensor, *, ml_dtypes: bool = False) -> np.ndarray:
    """Return the values as a new row-major array; bfloat16 and float8 are widened to float32.

    With `ml_dtypes`, they keep their type if the package of that name is installed and has it.
    Raises Unsupported for types that NumPy does not have (quantized, raw bits, half complex) and
    for more dimensions than NumPy supports.
    """
    import numpy as np

    from cgpt_convert.tensors import cast

    dtype = tensor.dtype
    if not (dtype.numpy or dtype.is_float):
        raise Unsupported(f"NumPy does not support the type {dtype.name}", where=tensor.name)
    own = dtype.numpy or (_of_ml_dtypes(dtype.name) if ml_dtypes else None)
    flat = np.empty(tensor.numel, own or "<f4")
    extent = tensor.extent()
    if extent is not None and extent.nbytes and own:
        extent.storage.readinto(extent.start, flat.view(np.uint8).data)
    else:
        done = 0
        for block in of(tensor, 8 << 20, None):
            into = flat[done : done + len(block) // dtype.nbytes]
            if own:
                into[:] = np.frombuffer(block, own)
            else:
                cast.widen(np.frombuffer(block, f"<u{dtype.nbytes}"), dtype.name, into)
            done += len(into)
    try:
        return flat.reshape(tensor.shape)
    except ValueError as error:
        message = f"NumPy does not support this shape ({error})"
        raise Unsupported(message, where=tensor.name) from error


def _of_ml_dtypes(name: str) -> Any:
    """Return the NumPy type that the package ml_dtypes adds; None without the package or type."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    return getattr(ml_dtypes, name, None)


def _stream(extent: ByteRange, itemsize: int, max_bytes: int) -> Iterator[memoryview]:
    """Yield the bytes of `extent` unchanged, through a buffer small enough for the cache."""
    most = max(min(max_bytes, piece_nbytes(extent.storage.source)) // itemsize, 1) * itemsize
    buffer = memoryview(bytearray(min(most, extent.nbytes)))
    for done in range(0, extent.nbytes, most):
        block = buffer[: min(most, extent.nbytes - done)]
        extent.storage.readinto(extent.start + done, block)
        yield block


def _arrange(
    tensor: Tensor, max_bytes: int, counts: CastCounts | None, tap: Tap, threads: int
) -> Iterator[memoryview]:
    """Yield the elements of a view that is reordered, byte-swapped, negated or cast."""
    import numpy as np

    from cgpt_convert.tensors import cast, fixups, gather

    fix = fixups.fixes(tensor)
    widest = max(tensor.stored.nbytes, tensor.dtype.nbytes)
    most = max(min(max_bytes // widest, cast.at_once(tensor.numel, max_bytes, threads)), 1)
    convert = cast.Cast(tensor.stored, tensor.target, most, counts) if tensor.target else None
    for words in gather.elements(tensor, max_bytes, most):
        for step in fix:
            step(words)
        if convert is None:
            yield words.view(np.uint8).data
        else:
            if tap:
                tap(words.data)
            for done in range(0, len(words), most):
                yield convert(words[done : done + most]).view(np.uint8).data


def _quantize(
    tensor: Tensor, max_bytes: int, counts: CastCounts | None, tap: Tap, threads: int
) -> Iterator[memoryview]:
    """Yield the blocks of a tensor that is cast to a block-quantized type."""
    from cgpt_convert.tensors import cast, fixups, gather, quantize

    fix = fixups.fixes(tensor)
    whole = quantize.BLOCK * 32  # bytes: any part that gather reads is whole blocks
    wanted = cast.at_once(tensor.numel, max_bytes, threads)
    most = max(min(max_bytes // whole * quantize.BLOCK, wanted), quantize.BLOCK)
    blocks = quantize.Quantizer(tensor.stored, tensor.dtype, most, counts, tensor.name)
    for words in gather.elements(tensor, max(max_bytes // whole, 1) * whole, most):
        for step in fix:
            step(words)
        if tap:
            tap(words.data)
        for done in range(0, len(words), most):
            yield blocks(words[done : done + most]).data

"""Tensors as strided views of byte ranges, read on demand."""

from __future__ import annotations

import math
from operator import mul
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from cgpt_convert.core.errors import BadRequest, Malformed, Unsupported
from cgpt_convert.core.limits import INT64, RANK
from cgpt_convert.core.text import html_table, quoted
from cgpt_convert.sources.local import Source, expect, outside
from cgpt_convert.tensors.dtypes import (
    BY_NAME,
    CAST_TARGETS,
    FLOAT32,
    UINT8,
    DType,
    cast_target,
    dtype_name,
)
from cgpt_convert.tensors.shapes import c_strides, dims, in_blocks, is_c_order, sliced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import EllipsisType

    import numpy as np
    import torch

    from cgpt_convert.tensors.read import CastCounts

    Index = int | slice | EllipsisType


# plain classes: a dataclass decorator takes longer than inspecting a small file


class Storage:
    """A range of bytes in a source that tensors view. Tensors with shared memory share it."""

    __slots__ = ("byteorder", "crc32", "device", "key", "nbytes", "offset", "source")

    def __init__(
        self,
        source: Source,
        offset: int,
        nbytes: int,
        key: str,  # the file's name for it: "0", "archive/data/0" ...
        byteorder: str = "little",
        crc32: int | None = None,  # of all its bytes, if the file records one
        device: str = "cpu",  # the device it was saved from
    ) -> None:
        self.source: Final = source
        self.offset: Final = offset
        self.nbytes: Final = nbytes
        self.key: Final = key
        self.byteorder: Final = byteorder
        self.crc32: Final = crc32
        self.device: Final = device

    def __repr__(self) -> str:
        return f"<Storage {self.label}: {self.nbytes:,} bytes>"

    @property
    def label(self) -> str:
        """File and key, for messages."""
        return f"{self.source.name}[{self.key}]"

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` of this storage."""
        if offset < 0 or offset + len(buffer) > self.nbytes:
            raise outside(self.label, self.nbytes, offset, len(buffer))
        self.source.readinto(self.offset + offset, buffer)

    def whole(self) -> Tensor:
        """Return all bytes, as a 1-D uint8 tensor named by the key."""
        return Tensor(self.key, UINT8, (self.nbytes,), (1,), 0, self)


Content = tuple[object, ...]  # the type of `Tensor.content`


class ByteRange(NamedTuple):
    """Bytes `start` to `start + nbytes` of a storage."""

    storage: Storage
    start: int
    nbytes: int


class Tensor:
    """A named view of a storage. `strides` and `start` count elements; `nbytes` is of the result.

    `stored` is the type of the bytes, `dtype` that of `blocks()`; they differ after `cast`.
    Block-quantized types have whole blocks along the rows.

    `conj` and `neg` are torch's lazy bits: the bytes are not yet conjugated or negated.
    """

    __slots__ = (
        "conj",
        "name",
        "neg",
        "quantizer",
        "shape",
        "start",
        "storage",
        "stored",
        "strides",
        "target",
    )

    def __init__(
        self,
        name: str,
        stored: DType,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        start: int,
        storage: Storage,
        target: DType | None = None,
        *,
        conj: bool = False,
        neg: bool = False,
        quantizer: str = "",  # how a quantized tensor's integers map to numbers, as text
    ) -> None:
        self.name: Final = name
        self.stored: Final = stored
        self.shape: Final = shape
        self.strides: Final = strides
        self.start: Final = start
        self.storage: Final = storage
        self.target: Final = target
        self.conj: Final = conj
        self.neg: Final = neg
        self.quantizer: Final = quantizer

    def __repr__(self) -> str:
        return f"<Tensor {self.name!r}: {self.dtype.name} {dims(self.shape)}, {self.origin}>"

    def _repr_html_(self) -> str:
        """Return a table for notebooks; no values are read."""
        strides = "row-major" if self.is_c_order else dims(self.strides, ", ")
        rows = (
            ("type", self.dtype.name),
            ("shape", dims(self.shape)),
            ("strides", strides),
            ("bytes", f"{self.nbytes:,}"),
            ("stored in", self.origin),
        )
        return html_table(f"Tensor {self.name}", rows)

    @property
    def dtype(self) -> DType:
        """The element type that `blocks()` yields."""
        return self.target or self.stored

    @property
    def numel(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The total number of bytes that `blocks()` yields."""
        return self.dtype.size(self.numel)

    @property
    def is_c_order(self) -> bool:
        """Whether the elements are in row-major order without gaps."""
        return self.strides == c_strides(self.shape) or is_c_order(self.shape, self.strides)

    @property
    def origin(self) -> str:
        """The location of the bytes and the operations on them, for messages and errors."""
        done = [f"{self.storage.label}+{self.stored.size(self.start)}"]
        if not self.is_c_order:
            done.append(f"strides {self.strides}")
        if self.conj or self.neg:
            done.append("conjugated" if self.conj else "negated")
        if self.target:
            done.append(f"as {self.target.name}")
        return ", ".join(done)

    @property
    def view(self) -> tuple[object, ...]:
        """A key that is equal for two names of the same view, such as tied weights."""
        return (
            id(self.storage),
            self.stored,
            self.shape,
            self.strides,
            self.start,
            self.conj,
            self.neg,
        )

    @property
    def content(self) -> Content:
        """A key for the result of `blocks()`: equal content has equal digests."""
        return (*self.view, self.dtype, self.quantizer)

    @property
    def uncast(self) -> Tensor:
        """The same view as it is stored; float32 for block-quantized types."""
        target = FLOAT32 if self.stored.block > 1 else None
        return self if target is self.target else replace(self, target=target)

    def renamed(self, name: str) -> Tensor:
        """Return the same view under another name."""
        return Tensor(  # faster than replace(), and every tensor is renamed
            name,
            self.stored,
            self.shape,
            self.strides,
            self.start,
            self.storage,
            self.target,
            conj=self.conj,
            neg=self.neg,
            quantizer=self.quantizer,
        )

    def transposed(self) -> Tensor:
        """Return the view with its dimensions reversed."""
        return replace(self, shape=self.shape[::-1], strides=self.strides[::-1])

    def cast(self, dtype: object) -> Tensor:
        """Return the same values as `dtype`: a name such as "bfloat16", or torch's or NumPy's type.

        Raises BadRequest for a type that cannot be cast to, and unless both types are real numbers.
        """
        if not isinstance(dtype, DType):
            try:
                dtype = BY_NAME[cast_target(dtype_name(dtype), CAST_TARGETS)]
            except BadRequest as error:
                raise error.at(self.name) from None
        if dtype == self.dtype:
            return self
        if not (self.stored.casts and dtype.casts):
            message = f"a tensor of type {self.dtype.name} cannot be cast to {dtype.name}"
            raise BadRequest(message, where=self.name)
        if not in_blocks(dtype, self.shape):
            raise BadRequest(
                f"{dtype.name} stores rows in blocks of {dtype.block} elements, "
                f"the shape is {dims(self.shape)}",
                where=self.name,
                hint='choose another type for this tensor: .cast("float16")',
            )
        return replace(self, target=None if dtype == self.stored else dtype)

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Tensor:
        """Return the view that NumPy's basic indexing gives: integers, slices and `...`.

        Only the elements of the view are read. Raises IndexError as NumPy does, and BadRequest for
        a negative step and for a part of a block of a quantized type.
        """
        start, shape, strides = sliced(index, self.start, self.shape, self.strides, self.name)
        if not in_blocks(self.dtype, shape):
            raise BadRequest(
                f"the index divides a block of {self.dtype.block} elements of {self.dtype.name}",
                where=self.name,
                hint='cast the tensor first: .cast("float32")',
            )
        return replace(self, start=start, shape=shape, strides=strides)

    def extent(self) -> ByteRange | None:
        """Return the raw bytes if they are already what `blocks()` would yield, else None."""
        swapped = self.storage.byteorder != "little" and self.stored.swap_width > 1
        if self.target or self.conj or self.neg or swapped or not self.is_c_order:
            return None
        if self.start % self.stored.block or not in_blocks(self.stored, self.shape):
            return None
        return ByteRange(self.storage, self.stored.size(self.start), self.nbytes)

    def blocks(
        self,
        max_bytes: int = 16 << 20,
        counts: CastCounts | None = None,
        tap: Callable[[memoryview], object] | None = None,
        threads: int = 1,
    ) -> Iterator[memoryview]:
        """Yield the elements in row-major order, little-endian, as `dtype`.

        A block has at most `max_bytes` bytes and is valid until the next is requested. `counts`
        collects what a cast loses; `tap` is called with the elements before they are cast, in
        order; `threads` is the number of threads that read tensors at the same time.
        """
        from cgpt_convert.tensors import read

        return read.of(self, max_bytes, counts, tap, threads)

    def numpy(self) -> np.ndarray:
        """Return the values as a new row-major array; bfloat16 and float8 are widened to float32.

        Raises Unsupported for types that NumPy does not have (quantized, raw bits, half complex).
        """
        from cgpt_convert.tensors import read

        return read.array(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: FBT001
        """Return the values as a new array, for `np.asarray`.

        bfloat16 and float8 are types of ml_dtypes if that package is installed, else float32.
        """
        if copy is False:
            raise ValueError(f"the values of {quoted(self.name)} cannot be used without a copy")
        from cgpt_convert.tensors import read

        values = read.array(self, ml_dtypes=True)
        return values if dtype is None else values.astype(dtype, copy=False)

    def torch(self) -> torch.Tensor:
        """Return the values as a new torch tensor of the same type, also bfloat16 and float8.

        Raises Unsupported without torch, and for types without dense tensors in torch.
        """
        from cgpt_convert.tensors import to_torch

        return to_torch.read(self)


View = TypeVar("View", Storage, Tensor)


def replace(view: View, **changes: Any) -> View:
    """Return a copy of a storage or tensor with these attributes changed."""
    for name in view.__slots__:
        if name not in changes:
            changes[name] = getattr(view, name)
    return type(view)(**changes)


def announce(tensors: Iterable[Tensor]) -> None:
    """Announce to remote sources that these tensors will be read, in this order."""
    reads = []
    for tensor in tensors:
        storage, extent = tensor.storage, tensor.extent()
        start, nbytes = (0, storage.nbytes) if extent is None else extent[1:]
        reads.append((storage.source, storage.offset + start, nbytes))
    expect(reads)


def view(
    dtype: DType, shape: tuple[int, ...], strides: tuple[int, ...], start: int, storage: Storage
) -> Tensor:
    """Return an unnamed tensor, with all numbers checked against the storage.

    Raises Malformed for negative or inconsistent numbers and for a view that exceeds its storage,
    Unsupported for more dimensions than torch supports.
    """
    if len(shape) != len(strides):
        message = f"the tensor has {len(shape)} dimensions and {len(strides)} strides"
        raise Malformed(message, where=storage.label)
    if len(shape) > RANK:
        message = f"the tensor has {len(shape):,} dimensions, the limit is {RANK}"
        raise Unsupported(message, where=storage.label)
    geometry = (*shape, *strides, start)
    if not 0 <= min(geometry) <= max(geometry) < INT64:
        numbers = f"shape {shape}, strides {strides}, start {start}"
        message = f"a number is negative or not below 2^63: {numbers}"
        raise Malformed(message, where=storage.label)
    tensor = Tensor("", dtype, shape, strides, start, storage)
    if tensor.numel:
        last = start + sum(map(mul, shape, strides)) - sum(strides)
        if dtype.size(last + 1) > storage.nbytes:
            raise Malformed(
                f"shape {shape}, strides {strides}, start {start} need "
                f"{dtype.size(last + 1):,} bytes, the storage has {storage.nbytes:,}",
                where=storage.label,
            )
    return tensor

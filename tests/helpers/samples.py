"""Tensors of every element type, as torch makes them and as this package sees them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors.dtypes import TABLE, DType
from cgpt_convert.tensors.tensor import Storage, Tensor
from tests.helpers.render import dense

if TYPE_CHECKING:
    import torch

SHAPES = ((2, 3), (), (0,), (4, 0, 2), (5,), (1, 1), (2, 1, 3, 2))
QUANTIZED = ("qint8", "quint8", "qint32", "quint4x2", "quint2x4")


def raw(dtype: DType, shape: tuple[int, ...], seed: int = 0) -> bytes:
    """Random bytes for a tensor, NaN and subnormal among them; 0 and 1 for bool."""
    most = 2 if dtype.kind == "b" else 256
    values = np.random.default_rng(seed).integers(0, most, math.prod(shape) * dtype.nbytes)
    return values.astype(np.uint8).tobytes()


def tensor(name: str, dtype: DType, shape: tuple[int, ...] = (2, 3), seed: int = 0) -> Tensor:
    """A contiguous tensor of random bytes; the last dimension counts blocks where there are any."""
    row = tuple(size * dtype.block for size in shape[-1:])
    return dense(name, dtype.name, (*shape[:-1], *row), raw(dtype, shape, seed))


def as_torch(tensor: Tensor) -> torch.Tensor:
    """The same tensor in torch; only contiguous ones."""
    import torch

    extent = tensor.extent()
    assert extent is not None
    data = bytearray(extent.nbytes)
    tensor.storage.readinto(extent.start, memoryview(data))
    flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(getattr(torch, tensor.dtype.name)).reshape(tensor.shape)


def from_torch(name: str, value: torch.Tensor) -> Tensor:
    """The view of a torch tensor, strides and all, of a copy of its storage."""
    import torch

    storage = value.untyped_storage()
    data = torch.tensor([], dtype=torch.uint8).set_(storage).numpy().tobytes()
    dtype = next(row for row in TABLE if row.name == str(value.dtype).removeprefix("torch."))
    kept = Storage(MemoryBytes("memory", data), 0, len(data), name)
    return Tensor(
        name, dtype, tuple(value.shape), value.stride(), int(value.storage_offset()), kept
    )


def every(dtypes: Iterable[DType]) -> list[Tensor]:
    """A tensor of each type in each shape."""
    return [
        tensor(f"{dtype.name}.{index}", dtype, shape, index)
        for dtype in dtypes
        for index, shape in enumerate(SHAPES)
        if shape or dtype.block == 1
    ]

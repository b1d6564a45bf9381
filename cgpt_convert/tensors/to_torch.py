"""Conversion of a Tensor to a torch.Tensor. torch is imported for the first tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.tensors.read import of

if TYPE_CHECKING:
    import torch

    from cgpt_convert.tensors.tensor import Tensor

_KINDS = "fiubc"  # real, integer, bool and complex numbers


def read(tensor: Tensor) -> torch.Tensor:
    """Return the values as a new contiguous tensor, bit for bit.

    Raises Unsupported without torch, for quantized types and raw bits, and for a type that this
    version of torch does not have.
    """
    try:
        import torch
    except ImportError as error:
        raise Unsupported("torch is not installed", hint="pip install torch") from error

    name = tensor.dtype.name
    dtype = getattr(torch, name, None)
    if dtype is None or tensor.dtype.kind not in _KINDS:
        raise Unsupported(
            f"torch does not support dense tensors of type {name}",
            where=tensor.name,
            hint='cast the tensor: .cast("float32")' if tensor.dtype.casts else "",
        )
    if not tensor.numel:
        return torch.empty(tensor.shape, dtype=dtype)
    data = bytearray(tensor.nbytes)
    extent = tensor.extent()
    if extent is not None:
        extent.storage.readinto(extent.start, memoryview(data))
    else:
        done = 0
        for block in of(tensor, 8 << 20, None):
            data[done : done + len(block)] = block
            done += len(block)
    return torch.frombuffer(data, dtype=dtype).reshape(tensor.shape)

"""Content digests of tensors, independent of container, layout and storage order."""

from __future__ import annotations

import hashlib

from cgpt_convert.tensor import Tensor


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256, in hex, of a line `DTYPE D0xD1x...` and the elements in C order, little-endian.

    Two tensors have the same digest exactly if type, shape and every bit of the values are equal,
    whatever file they are in. A scalar's line ends after the space.
    """
    shape = "x".join(map(str, tensor.shape))
    digest = hashlib.sha256(f"{tensor.dtype.name} {shape}\n".encode())
    for block in tensor.blocks():
        digest.update(block)
    return digest.hexdigest()

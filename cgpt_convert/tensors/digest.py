"""Content digests of tensors, independent of container, layout and storage order.

docs/digest.md defines them, exact enough to write another implementation from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cgpt_convert.tensors.tensor import Tensor

if TYPE_CHECKING:
    from hashlib import _Hash

WHOLE = "tensors 1"  # the title of the digest of everything; the number is the definition's


def begun(tensor: Tensor) -> _Hash:
    """SHA-256 that has taken a tensor's type and shape: the elements follow."""
    import hashlib

    shape = "x".join(map(str, tensor.shape))
    line = f"{tensor.dtype.name} {shape}"
    if tensor.quantizer:  # part of what the integers mean
        line += f" {tensor.quantizer}"
    return hashlib.sha256(f"{line}\n".encode())


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256, in hex, of a line `DTYPE D0xD1x...` and the elements in C order, little-endian.

    Two tensors have the same digest exactly if type, shape and every bit of the values are equal,
    whatever file they are in. A scalar's line ends after the space.
    """
    digest = begun(tensor)
    for block in tensor.blocks():
        digest.update(block)
    return digest.hexdigest()


def same_values(one: Tensor, other: Tensor) -> bool:
    """The same view, or the same values, which have to be read to be compared."""
    return one.view == other.view or tensor_digest(one) == tensor_digest(other)


def listed(digests: Mapping[str, str], title: str = WHOLE) -> str:
    """SHA-256, in hex, of all the tensors' digests, given by name; `title` says what they are."""
    import hashlib

    lines = [title.encode()]
    lines += sorted_lines((name.encode("utf-8", "surrogatepass"), d) for name, d in digests.items())
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def sorted_lines(rows: Iterable[tuple[bytes, str]]) -> list[bytes]:
    """A line for each name: digest, the name's length in bytes, the name. In order of the names."""
    return [b"%s %d %s" % (digest.encode(), len(name), name) for name, digest in sorted(rows)]

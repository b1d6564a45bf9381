"""Content digests of tensors, independent of container, layout and storage order.

docs/reference/digest.md defines them precisely enough for another implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cgpt_convert.tensors.tensor import Tensor

if TYPE_CHECKING:
    from hashlib import _Hash

WHOLE = "tensors 1"  # the title of the digest of all tensors, with the version of the definition


def begun(tensor: Tensor) -> _Hash:
    """Return a SHA-256 object updated with a tensor's type and shape; the elements follow."""
    import hashlib

    shape = "x".join(map(str, tensor.shape))
    line = f"{tensor.dtype.name} {shape}"
    if tensor.quantizer:  # the integers have no meaning without it
        line += f" {tensor.quantizer}"
    return hashlib.sha256(f"{line}\n".encode())


def tensor_digest(tensor: Tensor) -> str:
    """Return SHA-256, in hex, of a line `DTYPE D0xD1x...` and the row-major elements.

    Elements are little-endian. Two tensors have the same digest exactly if type, shape and every
    bit of the values are equal, whatever file they are in. The line of a scalar ends after the
    space.
    """
    digest = begun(tensor)
    for block in tensor.blocks():
        digest.update(block)
    return digest.hexdigest()


def same_values(one: Tensor, other: Tensor) -> bool:
    """Return whether both are the same view or have the same values, reading them if needed."""
    return one.view == other.view or tensor_digest(one) == tensor_digest(other)


def listed(digests: Mapping[str, str], title: str = WHOLE) -> str:
    """Return SHA-256, in hex, of all tensor digests, given by name; `title` names their scope."""
    import hashlib

    lines = [title.encode()]
    lines += sorted_lines((name.encode("utf-8", "surrogatepass"), d) for name, d in digests.items())
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def sorted_lines(rows: Iterable[tuple[bytes, str]]) -> list[bytes]:
    """Return one line per name, sorted by name: digest, the name's length in bytes, the name."""
    return [b"%s %d %s" % (digest.encode(), len(name), name) for name, digest in sorted(rows)]

"""Checks and helpers shared by the readers of all formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from cgpt_convert.checkpoint import Checkpoint, unreadable
from cgpt_convert.core.errors import SALVAGE, CgptError, Malformed, Unsupported
from cgpt_convert.core.findings import UNREADABLE, Finding
from cgpt_convert.core.limits import INT64, RANK
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.tensors.shapes import dims
from cgpt_convert.tensors.tensor import Tensor

AGAIN = f"download the file again, or {SALVAGE}"  # hint for truncated files


Unread = dict[str, CgptError]  # name of an entry -> why it cannot be read


def each_read(
    entries: Iterable[tuple[str, Callable[[], Tensor]]],
) -> tuple[dict[str, Tensor], Unread]:
    """Return the tensors by name, and the errors of entries that are Malformed or Unsupported.

    Raises the first of those errors if no tensor can be read.
    """
    tensors: dict[str, Tensor] = {}
    unread: Unread = {}
    for name, read in entries:
        result = _caught(read)
        if isinstance(result, CgptError):
            unread[name] = result
        else:
            tensors[name] = result
    if unread and not tensors:
        raise next(iter(unread.values()))
    return tensors, unread


def _caught(read: Callable[[], Tensor]) -> Tensor | CgptError:
    try:
        return read()
    except (Malformed, Unsupported) as error:
        return error


def add_unread(checkpoint: Checkpoint, unread: Unread) -> None:
    """List the unreadable entries in the checkpoint, and add a finding."""
    for name, error in unread.items():
        checkpoint.exotic[name] = unreadable(name, error)
    if unread:
        checkpoint.findings.append(Finding(UNREADABLE, quoted_list(unread)))


def checked_nbytes(shape: Sequence[int], bits: int, where: str) -> int:
    """Return the size in bytes of a dense tensor with elements of `bits` bits.

    Raises Malformed if that is not a whole number below 2^63, Unsupported beyond `limits.RANK`.
    """
    if len(shape) > RANK:
        message = f"the tensor has {len(shape):,} dimensions, the limit is {RANK}"
        raise Unsupported(message, where=where)
    # strides count a dimension of 0 as 1, and must not overflow either
    if math.prod([size or 1 for size in shape], start=bits) >= INT64:
        message = f"the shape {dims(shape)} is too large: the tensor has 2^63 bits or more"
        raise Malformed(message, where=where)
    total = math.prod(shape, start=bits)
    if total % 8:
        message = f"the tensor has {total:,} bits, which is not a whole number of bytes"
        raise Malformed(message, where=where)
    return total // 8


def add_aliases(tensors: dict[str, Tensor], aliases: Mapping[str, str], where: str) -> None:
    """Add each alias to `tensors` as another name of the same view."""
    for name, kept in aliases.items():
        if name in tensors:
            message = f"the alias {quoted(name)} is also the name of a tensor"
            raise Malformed(message, where=where)
        if kept not in tensors or kept in aliases:
            message = f"the alias {quoted(name)} refers to {quoted(kept)}, which is not a tensor"
            raise Malformed(message, where=where)
        tensors[name] = tensors[kept].renamed(name)

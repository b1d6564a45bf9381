"""The safetensors files that `HuggingFaceStorageWriter` saves, one or more for each rank.

Each file has the rank's chunks under the names of the whole tensors, and in its metadata the index
of the first element of each chunk (torch/distributed/checkpoint/_hf_utils.py). The shapes of the
whole tensors are not recorded; they follow from the chunks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core import findings, strict_json
from cgpt_convert.core.errors import Malformed
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.limits import INT64
from cgpt_convert.core.text import quoted
from cgpt_convert.formats.read_checks import Unread, add_unread, each_read
from cgpt_convert.formats.registry import FormatFile
from cgpt_convert.formats.safetensors.reader import SHARDING, read_file
from cgpt_convert.sources.local import Source
from cgpt_convert.sources.paths import join, open_all
from cgpt_convert.tensors.assembled import Box, assembled
from cgpt_convert.tensors.shapes import dims
from cgpt_convert.tensors.tensor import Tensor

Ints = tuple[int, ...]

_VERSION = "DCP_VERSION"


class _Piece(NamedTuple):
    """A chunk in a file."""

    start: Ints
    tensor: Tensor
    file: str


def read_shards(folder: str, names: Sequence[str], *, salvage: bool) -> Checkpoint:
    """Read the tensors that are assembled from the files `names` in the folder.

    Raises Malformed for chunks that overlap or leave holes; with `salvage`, such tensors are lost.
    """
    sources = [source for source in open_all([join(folder, name) for name in names]) if source]
    kind = f"safetensors of {len(names)} ranks"
    checkpoint = Checkpoint(folder, kind, tuple(sources), {})
    pieces: dict[str, dict[tuple[Ints, Ints], _Piece]] = {}
    unread: Unread = {}
    for name, source in zip(names, sources, strict=True):
        shard = read_file(FormatFile(source, source.name, salvage=salvage))
        starts = _starts(shard, source)
        for key, tensor in shard.items():
            start = starts.get(key, (0,) * len(tensor.shape))
            each = pieces.setdefault(key, {})
            each.setdefault((start, tensor.shape), _Piece(start, tensor, name))
        unread |= {key: entry.error for key, entry in shard.exotic.items() if entry.error}
        checkpoint.metadata |= shard.metadata
    for key in (SHARDING, _VERSION):
        checkpoint.metadata.pop(key, None)
    tensors, wrong = each_read(
        (key, functools.partial(_whole, key, [*chunks.values()], folder))
        for key, chunks in pieces.items()
    )
    damaged = [error for error in wrong.values() if isinstance(error, Malformed)]
    if damaged and not salvage:
        raise damaged[0]
    checkpoint.tensors = tensors
    add_unread(checkpoint, unread | wrong)
    checkpoint.storages = [tensor.storage for tensor in checkpoint.values()]
    detail = f"{len(names):,} files of ranks; the shapes of the tensors follow from their chunks"
    checkpoint.findings.append(Finding(findings.NO_INDEX, detail))
    return checkpoint


def _starts(shard: Checkpoint, source: Source) -> dict[str, Ints]:
    """Return the index of the first element of each chunk in a file."""
    where = f"{source.name}[{SHARDING}]"
    if SHARDING not in shard.metadata:
        return {}
    starts = {}
    for name, entry in strict_json.loads(shard.metadata[SHARDING].encode(), where).items():
        offsets = entry.get("saved_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or not all(map(_is_index, offsets)):
            raise Malformed(f"the saved_offsets of {quoted(name)} are not valid", where=where)
        starts[name] = tuple(offsets)
    return starts


def _is_index(value: object) -> bool:
    return type(value) is int and 0 <= value < INT64


def _whole(name: str, pieces: list[_Piece], where: str) -> Tensor:
    """Return the tensor that consists of the pieces."""
    first = pieces[0].tensor
    for piece in pieces:
        alike = piece.tensor.dtype == first.dtype and len(piece.tensor.shape) == len(first.shape)
        if not alike or len(piece.start) != len(first.shape):
            raise Malformed(
                f"its chunks in {quoted(pieces[0].file)} and {quoted(piece.file)} differ in type "
                "or number of dimensions",
                where=f"{where}[{name}]",
            )
    ends = [[s + n for s, n in zip(p.start, p.tensor.shape, strict=True)] for p in pieces]
    shape = tuple(map(max, zip(*ends, strict=True)))
    if math.prod(size or 1 for size in shape) * first.dtype.nbytes >= INT64:
        message = f"the shape {dims(shape)} is too large: the tensor has 2^63 bytes or more"
        raise Malformed(message, where=f"{where}[{name}]")
    return assembled(name, first.dtype, shape, [_box(piece) for piece in pieces], where)


def _box(piece: _Piece) -> Box:
    tensor = piece.tensor
    storage = tensor.storage
    span = storage.offset, storage.nbytes
    label = f"{piece.file}:{storage.offset}"
    opened = functools.partial(tensor.renamed, tensor.name)
    return Box(piece.start, tensor.shape, label, storage.source, span, opened)

"""GGUF files: typed key-value pairs, tensor descriptions and aligned tensor data.

Version 3, little-endian, as in ggml/docs/gguf.md. The keys that llama.cpp requires are not defined
here; they come in the request's fields.
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.text import quoted
from cgpt_convert.formats import planning
from cgpt_convert.formats.gguf import reader
from cgpt_convert.formats.gguf.fields import KEY_BYTES, encode, string
from cgpt_convert.plan import Field, FilePlan, Part, Request
from cgpt_convert.sources.paths import open_source
from cgpt_convert.tensors.dtypes import BY_GGUF
from cgpt_convert.tensors.shapes import dims, in_blocks

NAME = "gguf"

DTYPES = tuple(BY_GGUF.values())

_VERSION = 3
_KEY = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")  # gguf.md: lower_snake_case, dots between


def plan(request: Request) -> list[FilePlan]:
    """Plan one file: the request's fields, its metadata as strings, and its tensors in order.

    Raises Unsupported naming everything that GGUF cannot store: element types, names of more than
    63 bytes, more than 4 dimensions, rows that are not whole blocks, aliases, keys.
    """
    planning.check(request, NAME, lambda tensor: tensor.dtype in DTYPES)
    planning.refuse(request, "GGUF cannot store these tensors", _misfits(request))
    aliases = map(quoted, request.aliases)
    planning.refuse(request, "GGUF does not support tied tensors", aliases, "add --tied copy")
    planning.refuse(request, "GGUF cannot store these keys", _bad_keys(request))
    parts: list[Part] = [planning.with_metadata(request, lambda more: _header(request, more))]
    for tensor in request.tensors:
        parts.append(tensor)
        parts += [padding] if (padding := _padding(tensor.nbytes)) else []
    return [FilePlan(os.path.basename(request.name), tuple(parts))]


def read(path: str) -> Checkpoint:
    """Read the file at `path`, with its own tensor names, in the order of its bytes.

    Dimensions are in row-major order, the reverse of ggml's. Tensors of types that are not decoded
    (q6_k ...) are exotic. Fields are metadata, long arrays as their length. Raises Malformed
    wherever ggml's own reader rejects the file, Unsupported for version 1 and big-endian files.
    """
    return reader.from_source(open_source(path), path)


def fields(checkpoint: Checkpoint) -> tuple[Field, ...]:
    """Return the fields of a checkpoint that `read` returned, arrays with all their items."""
    (source,) = checkpoint.sources
    items = reader.fields(source).items()
    return tuple(Field(key, stored.type, stored.value()) for key, stored in items)


def _misfits(request: Request) -> Iterator[str]:
    for tensor in request.tensors:
        nbytes, rank = len(tensor.name.encode()), len(tensor.shape)
        if nbytes > reader.NAME_BYTES:
            limit = reader.NAME_BYTES
            yield f"{quoted(tensor.name)} (name of {nbytes} bytes, the limit is {limit})"
        if rank > reader.RANK:
            yield f"{quoted(tensor.name)} ({rank} dimensions, the limit is {reader.RANK})"
        if not in_blocks(tensor.dtype, tensor.shape):
            shape = dims(tensor.shape)
            yield f"{quoted(tensor.name)} (shape {shape}, blocks of {tensor.dtype.block} elements)"


def _bad_keys(request: Request) -> Iterator[str]:
    counts = Counter([*(field.key for field in request.fields), *request.metadata])
    for key, count in counts.items():
        if count > 1:
            yield f"{quoted(key)} (occurs twice)"
        if not _KEY.fullmatch(key) or len(key) > KEY_BYTES:
            yield f"{quoted(key)} (not words of a-z, 0-9 and _ separated by dots)"
        if key == reader.ALIGNMENT_KEY:
            yield f"{quoted(key)} (the alignment is always {reader.ALIGNMENT})"


def _header(request: Request, metadata: Mapping[str, str]) -> bytes:
    """Return everything before the bytes of the tensors."""
    tensors = request.tensors
    fields = [*request.fields, *(Field(key, "string", v) for key, v in metadata.items())]
    header = [reader.MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(fields))]
    header += map(encode, fields)
    offset = 0
    for tensor in tensors:
        rank = len(tensor.shape)
        header.append(string(tensor.name))
        header.append(struct.pack(f"<I{rank}Q", rank, *tensor.shape[::-1]))
        header.append(struct.pack("<IQ", tensor.dtype.gguf, offset))
        offset += tensor.nbytes + len(_padding(tensor.nbytes))
    text = b"".join(header)
    return text + _padding(len(text))


def _padding(nbytes: int) -> bytes:
    return bytes(-nbytes % reader.ALIGNMENT)

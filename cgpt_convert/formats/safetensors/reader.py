"""Reader for safetensors that applies all rules of the library, and stricter ones where needed."""

from __future__ import annotations

import os
from collections.abc import Container
from typing import TYPE_CHECKING, Any

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core import findings, strict_json
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.limits import HEADER_BYTES, TENSORS
from cgpt_convert.core.text import counted, quoted, quoted_list
from cgpt_convert.formats import read_checks, salvage
from cgpt_convert.formats.file_kinds import Start
from cgpt_convert.formats.registry import FormatFile
from cgpt_convert.sources.local import Source, read
from cgpt_convert.tensors.dtypes import BY_NAME, BY_SAFETENSORS
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor

if TYPE_CHECKING:
    from cgpt_convert.formats.scan_interface import PartScanner

METADATA = "__metadata__"
SHARDING = "DCP_SHARDING_INFO"  # the metadata key of a file with the chunks of one rank
FRAMEWORK = "format"  # the metadata key for "pt", "tf", "np"...: never an alias
F4 = "F4"
_SHOWN = 80  # characters of a value, in errors
N_LEN = 8  # tensor.rs `N_LEN`: the header's length, little-endian
_FLOAT4 = BY_NAME["float4_e2m1fn_x2"]
_FIELDS = {"dtype", "shape", "data_offsets"}


def is_alias(key: str, value: str, tensors: Container[str]) -> bool:
    """Return whether this metadata entry records that `key` is an alias of the tensor `value`."""
    return value in tensors and key not in tensors and key != FRAMEWORK


def detect(start: Start) -> bool:
    """Return whether the file begins with a header length and an opening brace.

    The length is one that readers accept, or one that fits the file; then this reader reports the
    error.
    """
    length = int.from_bytes(start.head[:N_LEN], "little")
    longest = max(HEADER_BYTES, start.source.nbytes - N_LEN)
    return start.head[N_LEN : N_LEN + 1] == b"{" and length <= longest


def read_file(file: FormatFile) -> Checkpoint:
    """Return the contents of the file; with `salvage`, the intact tensors of a truncated file."""
    checkpoint, end = described(file.source, file.path)
    if file.salvage and end > file.source.nbytes:
        return salvage.sift(checkpoint, file.source.nbytes, end).checkpoint
    return checked(file.source, checkpoint, end)


def scan(source: Source, scanner: PartScanner) -> None:
    """Check the file, which cannot contain code. Raises errors as `from_source` does."""
    if not scanner.in_storage:
        from_source(source, source.name)


def from_source(source: Source, path: str) -> Checkpoint:
    """Read the safetensors file in `source`; see `formats.safetensors.writer.read`."""
    return checked(source, *described(source, path))


def checked(source: Source, checkpoint: Checkpoint, end: int) -> Checkpoint:
    """Return `checkpoint`, whose tensors end at `end`; raise Malformed if `source` does not."""
    if end != source.nbytes:
        raise Malformed(
            f"the file has {source.nbytes:,} bytes, its tensors end at byte {end:,}",
            where=source.name,
            hint=read_checks.AGAIN if end > source.nbytes else "",
        )
    return checkpoint


def described(source: Source, path: str) -> tuple[Checkpoint, int]:
    """Read the header; return its contents and the end of the last tensor.

    The end may be past the end of the file.
    """
    fields, start = _header(source)
    metadata = fields.pop(METADATA, None) or {}
    if not strict_json.is_text_map(metadata):
        raise Malformed(f"{METADATA} is not a map of strings", where=source.name)
    # by offset: older writers used other header orders (tensor.rs `try_from`)
    entries = sorted(
        ((name, _checked_entry(value, f"{source.name}[{name}]")) for name, value in fields.items()),
        key=lambda item: item[1]["data_offsets"],
    )
    tensors: dict[str, Tensor] = {}
    unread: read_checks.Unread = {}
    end = 0
    for name, entry in entries:
        where = f"{source.name}[{name}]"
        first, last = entry["data_offsets"]
        if first != end:
            message = f"the data starts at offset {first:,}, expected at {end:,}"
            raise Malformed(message, where=where)
        try:
            tensors[name] = _tensor(name, entry, Storage(source, start + first, last - first, name))
        except Unsupported as error:  # a type from a later version
            unread[name] = error
        end = last
    if unread and not tensors:
        raise next(iter(unread.values()))
    storages = [tensor.storage for tensor in tensors.values()]
    aliases = {key: kept for key, kept in metadata.items() if is_alias(key, kept, tensors)}
    if len(entries) + len(aliases) > TENSORS.of(start):
        raise Unsupported(
            f"the header of {start:,} bytes has {counted(len(entries), 'tensor')} and "
            f"{counted(len(aliases), 'alias')}, the limit for its size is {TENSORS.of(start):,}",
            where=source.name,
        )
    read_checks.add_aliases(tensors, aliases, source.name)
    rest = {key: value for key, value in metadata.items() if key not in aliases}
    checkpoint = Checkpoint(path, "safetensors", (source,), tensors, storages, metadata=rest)
    read_checks.add_unread(checkpoint, unread)
    if SHARDING in metadata:
        detail = (
            f"{os.path.basename(source.name)} has the chunks of one rank; pass the folder for all"
        )
        checkpoint.findings.append(Finding(findings.LONE_SHARD, detail))
    return checkpoint, start + end


def _header(source: Source) -> tuple[dict[str, Any], int]:
    """Return the header's object, and the offset of the first byte after it."""
    if source.nbytes < N_LEN:
        message = f"the file has {source.nbytes:,} bytes, too few for the length of a header"
        raise Malformed(message, where=source.name)
    nbytes = int.from_bytes(read(source, 0, N_LEN), "little")
    if nbytes > max(HEADER_BYTES, source.nbytes - N_LEN):
        message = f"the header length is {nbytes:,} bytes, the limit is {HEADER_BYTES:,}"
        raise Malformed(message, where=source.name)
    if nbytes > HEADER_BYTES:
        raise Unsupported(
            f"the header has {nbytes:,} bytes, the limit is {HEADER_BYTES:,}, as in the "
            "safetensors library",
            where=source.name,
            hint="ask the author for the model in shards, or with shorter tensor names",
        )
    if N_LEN + nbytes > source.nbytes:
        message = f"the file is truncated inside its header of {nbytes:,} bytes"
        raise Malformed(message, where=source.name)
    data = read(source, N_LEN, nbytes)
    if not data.startswith(b"{"):
        raise Malformed("the header does not begin with {", where=source.name)
    return strict_json.loads(data, source.name), N_LEN + nbytes


def _checked_entry(entry: object, where: str) -> dict[str, Any]:
    """Return the tensor's description, with its fields checked for presence and type."""
    if not isinstance(entry, dict) or not entry.keys() >= _FIELDS:
        raise Malformed("the entry does not have dtype, shape and data_offsets", where=where)
    unknown = entry.keys() - _FIELDS
    if unknown:
        message = f"the entry has unknown fields: {quoted_list(sorted(unknown))}"
        raise Unsupported(message, where=where)
    if not _naturals(entry["shape"]):
        message = f"the shape {entry['shape']!r:.80} is not a list of non-negative integers"
        raise Malformed(message, where=where)
    offsets = entry["data_offsets"]
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004 a pair
        message = f"the data_offsets {offsets!r:.80} are not a range of bytes"
        raise Malformed(message, where=where)
    return entry


def _naturals(value: object) -> bool:
    # not isinstance: True is an int. strict_json rejects negative numbers and fractions
    return isinstance(value, list) and all(type(item) is int for item in value)


def _tensor(name: str, entry: dict[str, Any], storage: Storage) -> Tensor:
    where, code, shape = storage.label, entry["dtype"], entry["shape"]
    dtype = _FLOAT4 if code == F4 else BY_SAFETENSORS.get(code) if isinstance(code, str) else None
    if dtype is None:
        message = f"the element type {quoted(str(code), _SHOWN)} is not supported"
        raise Unsupported(message, where=where)
    nbytes = read_checks.checked_nbytes(shape, 4 if code == F4 else 8 * dtype.nbytes, where)
    if nbytes != storage.nbytes:
        message = f"the tensor has {storage.nbytes:,} bytes, its shape needs {nbytes:,}"
        raise Malformed(message, where=where)
    if code == F4:
        if not shape or shape[-1] % 2:
            message = f"the rows of a float4 tensor of shape {shape} do not fill whole bytes"
            raise Unsupported(message, where=where)
        shape = [*shape[:-1], shape[-1] // 2]
    dims = tuple(shape)
    return Tensor(name, dtype, dims, c_strides(dims), 0, storage)

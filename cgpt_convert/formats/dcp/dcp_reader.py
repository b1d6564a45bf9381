"""Reader for DCP folders: tensors assembled from the chunks that the ranks saved.

Opening reads only the metadata. A chunk is an item of a `.distcp` file: a complete torch archive,
or a tensor of a safetensors file. It is opened and compared with the metadata when it is read.
"""

from __future__ import annotations

import functools
import math
import os
import re
import threading
from collections.abc import Collection, Iterable, Mapping

from cgpt_convert.checkpoint import Checkpoint, MissingTensor, NonTensorValue
from cgpt_convert.core import findings
from cgpt_convert.core.errors import SALVAGE, CgptError, Malformed, Unsupported
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.limits import EXPANSION, EXPANSION_FLOOR
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.formats.dcp.dcp_folder import INDEX, KIND, hf_shards, rank_metadata
from cgpt_convert.formats.dcp.dcp_metadata import (
    ChunkedTensor,
    DcpMetadata,
    Item,
    read_metadata,
)
from cgpt_convert.formats.read_checks import Unread, add_unread, checked_nbytes
from cgpt_convert.formats.registry import FormatFile
from cgpt_convert.formats.safetensors import reader as safetensors_reader
from cgpt_convert.formats.torch import torch_files, zip_reader
from cgpt_convert.pickles.flatten.flatten import record_globals
from cgpt_convert.sources.local import OpenSource, Source
from cgpt_convert.sources.local import read as read_bytes
from cgpt_convert.sources.paths import join, open_all, open_source
from cgpt_convert.sources.unpack import SourceSlice
from cgpt_convert.tensors.assembled import Box, assembled
from cgpt_convert.tensors.tensor import Tensor

__all__ = ["read_file", "read_folder", "zip_reader"]  # which threads that read chunks need

_INSIDE = re.compile(r"[^./\\\0][^/\\\0]*(/[^./\\\0][^/\\\0]*)*")  # no parent folders
_ZSTD = "stream.zstd/1"
_SHOWN = 3


def read_file(file: FormatFile) -> Checkpoint:
    """Read the checkpoint whose metadata is `file`, with the chunks in the same folder."""
    return _read(os.path.dirname(file.path), file.path, (file.source,), salvage=file.salvage)


def read_folder(path: str, inside: Collection[str], salvage: bool) -> Checkpoint:  # noqa: FBT001
    """Read the checkpoint in the folder at `path`, which contains files with these names."""
    names = [INDEX] if INDEX in inside else rank_metadata(inside)
    if not names and hf_shards(inside):
        from cgpt_convert.formats.dcp.hf_shards import read_shards

        return read_shards(path, hf_shards(inside), salvage=salvage)
    if not names:
        raise Malformed(
            "the folder contains chunks of a distributed checkpoint but no .metadata",
            where=path,
            hint="copy .metadata too; torch writes it last, when all ranks have finished",
        )
    sources = tuple(open_source(join(path, name)) for name in names)
    return _read(path, path, sources, salvage=salvage)


def _read(folder: str, path: str, sources: tuple[Source, ...], *, salvage: bool) -> Checkpoint:
    metadata = merged([read_metadata(source) for source in sources])
    files = opened(folder, items(metadata, path), path, salvage=salvage)
    missing = [name for name, file in files.items() if file is None]
    if missing and (not salvage or len(missing) == len(files)):
        raise _missing(missing, len(files), path)
    there = {name: file for name, file in files.items() if file is not None}
    checkpoint = Checkpoint(path, KIND.value, (*sources, *there.values()), {})
    record_globals(checkpoint, metadata.globals)
    unread: Unread = {}
    chunks = DcpChunks(there)
    for name, tensor in metadata.tensors.items():
        why = _lost(tensor, files)
        if why:
            checkpoint.lost[name] = MissingTensor(_nbytes(tensor), why)
            continue
        try:
            checkpoint.tensors[name] = chunks.tensor(name, tensor, path)
        except (Malformed, Unsupported) as error:
            if isinstance(error, Malformed) and not salvage:
                raise
            unread[name] = error
    if unread and not checkpoint.tensors:
        raise next(iter(unread.values()))
    add_unread(checkpoint, unread)
    _check_expansion(checkpoint)
    checkpoint.storages = [tensor.storage for tensor in checkpoint.values()]
    checkpoint.others = [
        NonTensorValue(name, f"a pickle of {item.nbytes:,} bytes in {item.label}, not read")
        for name, item in metadata.objects.items()
    ]
    if metadata.objects:
        detail = quoted_list([*metadata.objects], _SHOWN)
        checkpoint.findings.append(Finding(findings.OBJECTS, detail))
    if metadata.unused:
        detail = f"{metadata.unused:,} items of storage_data"
        checkpoint.findings.append(Finding(findings.UNREFERENCED, detail))
    _nest(checkpoint, metadata.paths)
    return checkpoint


def _check_expansion(checkpoint: Checkpoint) -> None:
    """Raise Unsupported if the tensors are far larger than the files: chunks may share bytes."""
    there = sum(source.nbytes for source in checkpoint.sources)
    if sum(tensor.nbytes for tensor in checkpoint.values()) > EXPANSION * there + EXPANSION_FLOOR:
        message = f"the tensors are far larger than the {there:,} bytes of the files"
        raise Unsupported(message, where=checkpoint.path)


def _lost(tensor: ChunkedTensor, files: Mapping[str, Source | None]) -> str:
    """Return why the tensor cannot be assembled from the files; "" if it can."""
    for chunk in tensor.chunks:
        file, item = files[chunk.item.file], chunk.item
        if file is None:
            return f"the file {quoted(item.file)} is missing"
        if item.offset + item.nbytes > file.nbytes:
            return f"the file {quoted(item.file)} is truncated"
    return ""


def _nbytes(tensor: ChunkedTensor) -> int | None:
    if tensor.dtype is None:
        return None
    return checked_nbytes(tensor.shape, tensor.dtype.nbytes * 8, "")


def _missing(missing: list[str], count: int, path: str) -> Malformed:
    listed = quoted_list(missing, _SHOWN)
    return Malformed(
        f"{len(missing):,} of {count:,} files of the checkpoint are missing: {listed}",
        where=path,
        hint=f"copy the files of all ranks into one folder, or {SALVAGE}",
    )


def merged(parts: list[DcpMetadata]) -> DcpMetadata:
    """Return the metadata of several ranks as one. Entries of several ranks are from the first."""
    first = parts[0]
    if len(parts) == 1:
        return first
    tensors = dict(first.tensors)
    objects, paths = dict(first.objects), dict(first.paths)
    names = dict.fromkeys(first.globals)
    for part in parts[1:]:
        for name, tensor in part.tensors.items():
            known = tensors.setdefault(name, tensor)
            if (known.dtype, known.shape) != (tensor.dtype, tensor.shape):
                raise Malformed(f"the ranks disagree about the type or shape of {quoted(name)}")
            chunks = {(chunk.start, chunk.shape): chunk for chunk in tensor.chunks}
            chunks |= {(chunk.start, chunk.shape): chunk for chunk in known.chunks}
            tensors[name] = known._replace(chunks=tuple(chunks.values()))
        objects = part.objects | objects
        paths = part.paths | paths
        names |= dict.fromkeys(part.globals)
    unused = sum(part.unused for part in parts)
    return DcpMetadata(tensors, objects, paths, unused, tuple(names))


def items(metadata: DcpMetadata, where: str) -> dict[str, list[Item]]:
    """Return the items of each file, in order; `where` names the checkpoint.

    Raises Malformed for a file outside the folder and for items that share some of their bytes.
    """
    each: dict[str, set[Item]] = {}
    for tensor in metadata.tensors.values():
        for chunk in tensor.chunks:
            each.setdefault(chunk.item.file, set()).add(chunk.item)
    for item in metadata.objects.values():
        each.setdefault(item.file, set()).add(item)
    for file, there in each.items():
        if not _INSIDE.fullmatch(file):
            message = f"a chunk is in the file {quoted(file)}, which is outside the folder"
            raise Malformed(message, where=where)
        before: Item | None = None
        for item in sorted(there, key=lambda item: (item.offset, item.nbytes)):
            if before and before.offset < item.offset < before.offset + before.nbytes:
                shared = f"{before.label} and {item.label}"
                raise Malformed(f"the chunks {shared} share bytes of a file", where=where)
            before = item
    return {file: sorted(each[file]) for file in sorted(each)}


def opened(
    folder: str, each: Mapping[str, Iterable[Item]], path: str, *, salvage: bool = False
) -> dict[str, OpenSource | None]:
    """Open the files of the items; None for each that does not exist.

    Raises Malformed if an item is not inside its file, except with `salvage`.
    """
    files = dict(zip(each, open_all([join(folder, name) for name in each]), strict=True))
    for name, file in files.items():
        end = max((item.offset + item.nbytes for item in each[name]), default=0)
        if file is not None and end > file.nbytes and not salvage:
            raise Malformed(
                f"the file {quoted(name)} has {file.nbytes:,} bytes, but a chunk in it ends at "
                f"byte {end:,}",
                where=path,
                hint=f"copy the file again, or {SALVAGE}",
            )
    return files


def _nest(checkpoint: Checkpoint, paths: Mapping[str, tuple[str | int, ...]]) -> None:
    """Record the dicts that contained the tensors; items of lists do not count as dicts."""
    names = (*checkpoint.tensors, *checkpoint.exotic, *checkpoint.lost)
    checkpoint.containers[""] = ""
    for name in names:
        path = paths.get(name, (name,))
        inner = ""
        for depth, key in enumerate(path):
            if isinstance(key, str) and depth:
                outer, inner = inner, ".".join(map(str, path[:depth]))
                checkpoint.containers.setdefault(inner, outer)
        checkpoint.within[name] = inner


class DcpChunks:
    """The chunks of a checkpoint, opened when they are read."""

    def __init__(self, files: Mapping[str, Source]) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._safetensors: dict[tuple[str, int], Checkpoint] = {}

    def tensor(self, name: str, tensor: ChunkedTensor, where: str) -> Tensor:
        """Return the tensor, assembled from its chunks."""
        if tensor.dtype is None:
            raise tensor.error or Unsupported("the element type is unknown", where=where)
        if tensor.dtype.block > 1 or tensor.dtype.kind == "q":
            message = f"chunks of the type {tensor.dtype.name} are not supported"
            raise Unsupported(message, where=f"{where}[{name}]")
        checked_nbytes(tensor.shape, tensor.dtype.nbytes * 8, f"{where}[{name}]")
        for chunk in tensor.chunks:
            check_transforms(chunk.item, f"{where}[{name}]")
            nbytes = math.prod(chunk.shape) * tensor.dtype.nbytes
            if nbytes > chunk.item.nbytes:
                raise Malformed(
                    f"the chunk {chunk.item.label} has {chunk.item.nbytes:,} bytes, its shape "
                    f"needs {nbytes:,}",
                    where=f"{where}[{name}]",
                )
        return assembled(name, tensor.dtype, tensor.shape, self.boxes(name, tensor), where)

    def boxes(self, name: str, tensor: ChunkedTensor) -> list[Box]:
        """Return the chunks that have elements."""
        return [
            Box(
                chunk.start,
                chunk.shape,
                chunk.item.label,
                self._files[chunk.item.file],
                (chunk.item.offset, chunk.item.nbytes),
                functools.partial(self._opened, name, tensor, chunk.shape, chunk.item),
            )
            for chunk in tensor.chunks
            if 0 not in chunk.shape
        ]

    def _opened(
        self, name: str, tensor: ChunkedTensor, shape: tuple[int, ...], item: Item
    ) -> Tensor:
        """Return the tensor of one chunk, which must be what the metadata says."""
        file = self._files[item.file]
        where = f"{file.name}[{item.offset}]"
        head = read_bytes(file, item.offset, min(9, file.nbytes - item.offset))
        if head[8:] == b"{":
            chunk = self._of_safetensors(file, item).get(name)
        else:
            chunk = _of_torch(SourceSlice(file, item.offset, item.nbytes, where))
        if chunk is None:
            raise Malformed(f"the chunk of {quoted(name)} is missing", where=where)
        if (chunk.shape, chunk.dtype) != (shape, tensor.dtype):
            raise Malformed(
                f"the chunk of {quoted(name)} is {chunk.dtype.name} {list(chunk.shape)}, "
                f".metadata says {tensor.dtype.name if tensor.dtype else ''} {list(shape)}",
                where=where,
            )
        return chunk

    def _of_safetensors(self, file: Source, item: Item) -> Checkpoint:
        """Return the safetensors file that starts at the item and has the chunks of all tensors."""
        key = item.file, item.offset
        with self._lock:
            if key not in self._safetensors:
                nbytes = file.nbytes - item.offset
                window = SourceSlice(file, item.offset, nbytes, f"{file.name}[{item.offset}]")
                self._safetensors[key] = safetensors_reader.read_file(
                    FormatFile(window, window.name)
                )
            return self._safetensors[key]


def check_transforms(item: Item, where: str) -> None:
    """Raise Unsupported if the bytes of the item are transformed."""
    if item.transforms:
        known = all(each == _ZSTD for each in item.transforms)
        how = "compressed with zstd"
        if not known:
            how = f"transformed by {quoted_list(item.transforms)}"
        raise Unsupported(
            f"the chunk {item.label} is {how}, which is not supported",
            where=where,
            hint="load the checkpoint with torch and save it without _extensions",
        )


def _of_torch(window: SourceSlice) -> Tensor | None:
    """Return the only tensor of a torch file; None if it has none, or several."""
    try:
        checkpoint = torch_files.read_file(FormatFile(window, window.name))
    except CgptError as error:
        raise error.at(window.name) from None
    if len(checkpoint) == 1 and not checkpoint.exotic:
        return next(iter(checkpoint.values()))
    for entry in checkpoint.exotic.values():
        raise Unsupported(f"the chunk is not a dense tensor: {entry.kind}", where=window.name)
    return None

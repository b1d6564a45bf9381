"""Folders of npy arrays, one per tensor, with a `tensors.json` sidecar.

`tensors.json`, written last, has each tensor's file, true element type (see `header`) and shape,
then the aliases (dropped name -> kept) and the metadata. Folders without it can also be read.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core import strict_json
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.file_names import file_names, tensor_name
from cgpt_convert.core.findings import UNREFERENCED, Finding
from cgpt_convert.core.limits import INDEX_BYTES
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.formats import planning, read_checks
from cgpt_convert.formats.npy import header
from cgpt_convert.formats.registry import FormatFile
from cgpt_convert.plan import FilePlan, Request
from cgpt_convert.sources.local import Source
from cgpt_convert.sources.local import read as read_bytes
from cgpt_convert.sources.paths import is_url, join, listing, open_all, open_source
from cgpt_convert.tensors.tensor import Storage, Tensor

NAME = "npy"

DTYPES = header.DTYPES

SIDECAR = "tensors.json"
_KEYS = {"files", "aliases", "metadata"}
_FIELDS = {"file", "dtype", "shape"}


def plan(request: Request) -> list[FilePlan]:
    """Plan a file for each tensor, then `tensors.json`; `file_names` names the files.

    Raises Unsupported naming all tensors whose type cannot be stored.
    """
    planning.check(request, NAME, lambda tensor: tensor.dtype in DTYPES)
    files = file_names((tensor.name for tensor in request.tensors), header.SUFFIX)
    plans = [FilePlan(files[t.name], (header.header_bytes(t), t)) for t in request.tensors]
    listing = {
        t.name: {"file": files[t.name], "dtype": t.dtype.name, "shape": t.shape}
        for t in request.tensors
    }

    def sidecar(metadata: Mapping[str, str]) -> bytes:
        document = {"files": listing, "aliases": request.aliases, "metadata": dict(metadata)}
        return json.dumps(document, indent=2).encode() + b"\n"

    return [*plans, FilePlan(SIDECAR, (planning.with_metadata(request, sidecar),))]


def read(path: str) -> Checkpoint:
    """Read the folder, in the order of `tensors.json`, or sorted by name without it.

    Arrays of objects (pickles), strings, dates and records, and files that are not arrays, are
    listed as unreadable. Raises Malformed if `tensors.json` and a file contradict each other,
    BadRequest if `path` is not a folder, Unsupported if no array can be read.
    """
    present = listing(path)
    if present is None or SIDECAR in present:  # without a listing, the sidecar names the arrays
        return _with_sidecar(path, present or [])
    arrays = sorted(name for name in present if name.endswith(header.SUFFIX))
    if not arrays:
        raise Unsupported("the folder contains no arrays (*.npy)", where=path)
    sources = _opened(path, arrays)
    tensors, unread = read_checks.each_read(
        (name, functools.partial(_array, sources[file], name))
        for name, file in _named(arrays).items()
    )
    checkpoint = _checkpoint(path, tensors, {*present} - {*arrays})
    read_checks.add_unread(checkpoint, unread)
    return checkpoint


def detect(inside: Collection[str]) -> bool:
    """Return whether there is an array among the names in a folder without weight files."""
    return any(name.endswith(header.SUFFIX) for name in inside)


def read_file(file: FormatFile) -> Checkpoint:
    """Return the array of the .npy file `source`, named like the file without suffix.

    Raises Unsupported for arrays of objects (pickles), strings, dates and records.
    """
    source = file.source
    path = source.name
    if is_url(path):
        from urllib.parse import urlsplit

        path = urlsplit(path).path
    (name,) = _named([os.path.basename(path)])
    tensor = _array(source, name)
    checkpoint = Checkpoint(file.path, "NumPy array", (source,), {name: tensor}, [tensor.storage])
    checkpoint.findings += header.big_endian(checkpoint.storages)
    return checkpoint


def _opened(path: str, files: Sequence[str]) -> dict[str, Source]:
    """Return the existing files of the folder by name."""
    pairs = zip(files, open_all([join(path, file) for file in files]), strict=True)
    return {name: source for name, source in pairs if source is not None}


def _named(files: list[str]) -> dict[str, str]:
    """Return the files by tensor name: decoded if `plan` named all files, else the file stems."""
    stems = [file.removesuffix(header.SUFFIX) for file in files]
    names = [tensor_name(stem) for stem in stems]
    known = [name for name in names if name is not None]
    named = file_names(known, header.SUFFIX)
    if list(named.values()) == files:
        return named
    return dict(zip(stems, files, strict=True))


def _with_sidecar(path: str, present: list[str]) -> Checkpoint:
    where = os.path.join(path, SIDECAR)
    sidecar = _sidecar(where)
    used = [_file(where, *entry) for entry in sidecar["files"].items()]
    sources = _opened(path, used)
    tensors = {
        name: _listed(f"{where}[{name}]", name, entry, sources.get(entry["file"]))
        for name, entry in sidecar["files"].items()
    }
    if len(set(used)) < len(used):
        raise Malformed("two tensors have the same file", where=where)
    checkpoint = _checkpoint(path, tensors, {*present} - {*used, SIDECAR})
    read_checks.add_aliases(tensors, sidecar["aliases"], where)
    checkpoint.metadata.update(sidecar["metadata"])
    return checkpoint


def _sidecar(where: str) -> dict[str, Any]:
    source = open_source(where)
    if source.nbytes > INDEX_BYTES:
        message = f"the file has {source.nbytes:,} bytes, the limit is {INDEX_BYTES:,}"
        raise Unsupported(message, where=where)
    sidecar = strict_json.loads(read_bytes(source, 0, source.nbytes), where)
    if sidecar.keys() != _KEYS or not isinstance(sidecar["files"], dict):
        message = "the JSON does not consist of objects named files, aliases and metadata"
        raise Malformed(message, where=where)
    if not all(strict_json.is_text_map(sidecar[key]) for key in ("aliases", "metadata")):
        raise Malformed("aliases and metadata are not maps of strings", where=where)
    return sidecar


def _file(where: str, name: str, entry: object) -> str:
    """Return the file that an entry of the sidecar names."""
    where = f"{where}[{name}]"
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise Malformed("the entry does not consist of file, dtype and shape", where=where)
    file = entry["file"]
    if not isinstance(file, str) or not file.endswith(header.SUFFIX) or set(file) & set("/\\\0"):
        message = f"the file {quoted(str(file))} is not the name of an array in the folder"
        raise Malformed(message, where=where)
    return file


def _listed(where: str, name: str, entry: dict[str, Any], source: Source | None) -> Tensor:
    """Return the tensor that an entry of the sidecar describes, checked against its file."""
    if source is None:
        raise Malformed(f"the file {quoted(entry['file'])} is missing", where=where)
    tensor, dtype = _array(source, name), entry["dtype"]
    if list(tensor.shape) != entry["shape"]:
        message = f"the entry has shape {entry['shape']}, the file has {list(tensor.shape)}"
        raise Malformed(message, where=where)
    return tensor if dtype == tensor.stored.name else header.undisguised(tensor, dtype, where)


def _array(source: Source, name: str) -> Tensor:
    return header.array(Storage(source, 0, source.nbytes, name))


def _checkpoint(path: str, tensors: dict[str, Tensor], others: set[str]) -> Checkpoint:
    storages = [tensor.storage for tensor in tensors.values()]
    sources = tuple(storage.source for storage in storages)
    checkpoint = Checkpoint(path, "NumPy npy folder", sources, tensors, storages)
    checkpoint.findings += header.big_endian(storages)
    if others:
        detail = f"not read: {quoted_list(sorted(others))}"
        checkpoint.findings.append(Finding(UNREFERENCED, detail))
    return checkpoint

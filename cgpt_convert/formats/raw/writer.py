"""Folders of raw files with a `mapping.json` that locates each tensor.

`extract` writes them: by default one file per storage, with the bytes of the archive, named by key,
so that programs that know the archive's numbering find their files. `plan` writes one row-major
file per tensor, named after the tensor.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cgpt_convert.checkpoint import Checkpoint, CompositeTensor
from cgpt_convert.core import file_names
from cgpt_convert.core.errors import BadRequest, Malformed, Unsupported
from cgpt_convert.core.limits import INDEX_BYTES
from cgpt_convert.core.strict_json import is_text_map, loads
from cgpt_convert.core.text import quoted
from cgpt_convert.formats import planning
from cgpt_convert.formats.raw.reader import FileRecord, MappingReader, parts
from cgpt_convert.plan import AvailableDigests, FileDigest, FilePlan, Request
from cgpt_convert.sources.local import Source, is_in_memory
from cgpt_convert.sources.local import read as read_bytes
from cgpt_convert.sources.paths import open_source
from cgpt_convert.tensors.dtypes import TABLE
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor

NAME = "parameters"
DTYPES = TABLE  # raw bytes support every type

MAPPING = "mapping.json"
_ABOUT = "cgpt-convert parameters 1"
_NO_DIGEST = FileDigest("0" * 64, 0)
_ARRAYS = "arrays"
# file names that plan_storages uses for numeric keys
_OURS = re.compile(rf"(?:[0-9]+/)?(?:{_ARRAYS}/)?[0-9]+", re.ASCII)


def plan(request: Request) -> list[FilePlan]:
    """Plan one little-endian, row-major file per tensor, and finally `mapping.json`."""
    planning.check(request, NAME, lambda _tensor: True, splits=False)
    files = file_names.file_names(tensor.name for tensor in request.tensors)
    files = {name: _not_the_mapping(file) for name, file in files.items()}
    rows = {t.name: _row(t, files[t.name], raw=False) for t in request.tensors}
    for alias, kept in request.aliases.items():
        rows[alias] = {**rows[kept], "tied_to": kept}
    data = [FilePlan(files[t.name], (t,), hashed=True) for t in request.tensors]
    return [*data, _mapping_plan(rows, {}, request)]


def plan_storages(
    checkpoint: Checkpoint,
    tensors: Sequence[Tensor],
    exotic: Sequence[CompositeTensor],
    copies: Mapping[str, Tensor] = MappingProxyType({}),
) -> list[FilePlan]:
    """Plan one file per storage that `tensors` use, with the bytes of the archive, and a mapping.

    Storages of several shards go to subfolders, numbered from 1 in the order of the sources.
    `copies`, file -> tensor, are also written, row-major; the mapping lists them separately.
    """
    every = [*tensors, *(part for e in exotic for part in e.parts)]
    request = Request(MAPPING, tuple(tensors))
    names = [*(tensor.name for tensor in tensors), *(each.name for each in exotic)]
    planning.check_unicode(request, names)
    files = _storage_files(checkpoint, [tensor.storage for tensor in every])
    rows: dict[str, Any] = {}
    first: dict[tuple[object, ...], str] = {}
    for tensor in tensors:
        row = rows[tensor.name] = _row(tensor, files[id(tensor.storage)], raw=True)
        kept = first.setdefault(tensor.view, tensor.name)
        if kept != tensor.name:
            row["tied_to"] = kept
    apart = {
        e.name: {
            "kind": e.kind,
            "dtype": e.dtype,
            "shape": list(e.shape),
            "detail": e.detail,
            "parts": {p.name: _row(p, files[id(p.storage)], raw=True) for p in e.parts},
        }
        for e in exotic
    }
    storages = {id(tensor.storage): tensor.storage for tensor in every}
    users: dict[int, list[str]] = {}  # for the error if a storage is damaged
    for tensor in every:
        users.setdefault(id(tensor.storage), []).append(tensor.name)
    data = [
        FilePlan(files[key], (storage.whole().renamed(", ".join(users[key])),), hashed=True)
        for key, storage in storages.items()
    ]
    more = [FilePlan(file, (tensor,), hashed=True) for file, tensor in copies.items()]
    listed = [_row(tensor, file, raw=False) for file, tensor in copies.items()]
    return [*data, *more, _mapping_plan(rows, apart, request, listed)]


def read(path: str) -> Checkpoint:
    """Read the tensors that the folder's `mapping.json` describes.

    Raises Malformed, naming the tensor, for a mapping that does not fit the files.
    """
    source = open_source(os.path.join(path, MAPPING))
    mapping = _parsed(source)
    tensors, exotic = mapping["tensors"], mapping["exotic"]
    reader = MappingReader(path, [*tensors.values(), *parts(exotic)])
    checkpoint = Checkpoint(path, "extracted parameters", (), {})
    checkpoint.format = NAME
    for name, row in tensors.items():
        checkpoint.tensors[name] = reader.tensor(name, row)
    for name, row in exotic.items():
        checkpoint.exotic[name] = reader.exotic(name, row)
    checkpoint.storages = list(reader.storages.values())
    checkpoint.sources = (source, *(storage.source for storage in checkpoint.storages))
    checkpoint.metadata = mapping["metadata"]
    return checkpoint


def files(path: str) -> frozenset[str]:
    """Return the files that the folder's `mapping.json` names; raise errors as `read` does."""
    source = open_source(os.path.join(path, MAPPING))
    try:
        mapping = _parsed(source)
    finally:
        source.close()
    rows = [
        row
        for row in (*mapping["tensors"].values(), *parts(mapping["exotic"]))
        if isinstance(row, dict)
    ]
    return frozenset(row["file"] for row in rows if isinstance(row.get("file"), str))


def _parsed(source: Source) -> dict[str, Any]:
    if source.nbytes > INDEX_BYTES:
        message = f"the mapping has {source.nbytes:,} bytes, the limit is {INDEX_BYTES:,}"
        raise Unsupported(message, where=source.name)
    mapping = loads(read_bytes(source, 0, source.nbytes), source.name)
    match mapping:
        case {
            "format": str(about),
            "tensors": dict(),
            "exotic": dict(),
            "metadata": dict(metadata),
        } if about == _ABOUT and is_text_map(metadata):
            return mapping
    raise Malformed(f"the file is not a mapping of the form {quoted(_ABOUT)}", where=source.name)


def recorded(path: str) -> list[FileRecord]:
    """Return the files and checksums that the folder's `mapping.json` records, per tensor.

    Copies for other programs, which are not tensors of the folder, have an empty name.
    """
    mapping = _parsed(open_source(os.path.join(path, MAPPING)))
    copies = mapping.get("copies", [])
    rows = [*mapping["tensors"].items()]
    for row in mapping["exotic"].values():
        rows += row["parts"].items()
    if not isinstance(copies, list):
        raise Malformed("copies is not a list", where=path)
    rows += [("", row) for row in copies]
    reader = MappingReader(path, [row for _, row in rows])
    return [reader.recorded(name, row) for name, row in rows]


def read_mapped(
    path: str, mapping: Mapping[str, tuple[str, str, tuple[int, ...], tuple[int, ...]]]
) -> Checkpoint:
    """Read the tensors of a folder of raw numbered files.

    Raises BadRequest listing all missing files.
    """
    try:
        reader = MappingReader(path, [{"file": file} for file, *_ in sorted(mapping.values())])
    except Malformed as error:  # the user requested these files with --mapping
        hint = "pass the folder with the numbered files of this model"
        raise BadRequest(error.message, where=path, hint=hint) from None
    checkpoint = Checkpoint(path, "bare parameters", (), {})
    for name, (file, dtype, shape, strides) in mapping.items():
        row = {"file": file, "dtype": dtype, "shape": list(shape), "strides": list(strides)}
        checkpoint.tensors[name] = reader.tensor(name, row | {"start": 0})
    checkpoint.storages = list(reader.storages.values())
    checkpoint.sources = tuple(storage.source for storage in checkpoint.storages)
    return checkpoint


def _storage_files(checkpoint: Checkpoint, storages: Sequence[Storage]) -> dict[int, str]:
    """Return relative file names by storage id, made from keys, which may be any text."""
    numbers = _shard_numbers(checkpoint)
    files: dict[int, str] = {}
    taken = {MAPPING, _ARRAYS}
    for storage in storages:
        if id(storage) in files:
            continue
        if is_in_memory(storage.source):  # an array in a pickle, with a text key
            folder, key = f"{_ARRAYS}/", str(len(files))
        else:
            number = numbers.get(_file_of(storage, numbers))
            folder, key = f"{number}/" if number else "", storage.key
        if _OURS.fullmatch(key):  # a file name from such a folder
            path = folder + key
        else:
            path = folder + _not_the_mapping(file_names.file_names([key])[key])
        again = 1
        while path.lower() in taken:  # two folders of an archive may use the same key
            again += 1
            path = folder + file_names.file_names([key], f"~{again}")[key]
        taken.add(path.lower())
        files[id(storage)] = path
    return files


def _shard_numbers(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the number of each file, from 1; empty if the keys of all files are distinct."""
    numbers = {source.name: number for number, source in enumerate(checkpoint.sources, 1)}
    places: dict[str, str] = {}
    for storage in checkpoint.storages:
        file = _file_of(storage, numbers)
        if file in numbers and places.setdefault(storage.key, file) != file:
            return numbers
    return {}


def _file_of(storage: Storage, files: Mapping[str, int]) -> str:
    """Return the file that contains the storage; a deflated record's source is FILE[RECORD]."""
    name = storage.source.name
    if name in files or not name.endswith("]"):
        return name
    return next((file for file in files if name.startswith(f"{file}[")), name)


def _not_the_mapping(file: str) -> str:
    return f"%{ord(file[0]):02X}{file[1:]}" if file.lower() == MAPPING else file


def _row(tensor: Tensor, file: str, *, raw: bool) -> dict[str, Any]:
    """Return the mapping's row for a tensor: as stored, or as `blocks()` yields it."""
    row: dict[str, Any] = {
        "file": file,
        "dtype": tensor.stored.name if raw else tensor.dtype.name,
        "shape": list(tensor.shape),
        "strides": list(tensor.strides if raw else c_strides(tensor.shape)),
        "start": tensor.start if raw else 0,
        "byteorder": tensor.storage.byteorder if raw else "little",
    }
    if raw and tensor.conj:
        row["conj"] = True
    if raw and tensor.neg:
        row["neg"] = True
    if tensor.quantizer:
        row["quantizer"] = tensor.quantizer
    return row


def _mapping_plan(
    tensors: dict[str, Any],
    exotic: dict[str, Any],
    request: Request,
    copies: Sequence[dict[str, Any]] = (),
) -> FilePlan:
    """Plan `mapping.json`, made when the digests of the files it names are known."""

    def make(digests: AvailableDigests, metadata: Mapping[str, str]) -> bytes:
        def signed(row: dict[str, Any]) -> dict[str, Any]:
            digest = digests.files.get(row["file"], _NO_DIGEST)
            return {**row, "sha256": digest.sha256, "crc32": f"{digest.crc32:08x}"}

        mapping: dict[str, Any] = {
            "format": _ABOUT,
            "tensors": {name: signed(row) for name, row in tensors.items()},
            "exotic": {
                name: {**row, "parts": {key: signed(part) for key, part in row["parts"].items()}}
                for name, row in exotic.items()
            },
            "metadata": dict(metadata),
        }
        if copies:  # for other programs; not needed to read the folder
            mapping["copies"] = [signed(row) for row in copies]
        return (json.dumps(mapping, indent=1) + "\n").encode()

    return FilePlan(MAPPING, (planning.late(request, make),))

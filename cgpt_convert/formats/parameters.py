"""A folder of raw files and `mapping.json`, which says what tensor lies where in which file.

`extract` writes it: by default each storage byte for byte under its key, as it lies in the
archive, so that programs which know the archive's numbering find their files. `plan` writes each
tensor apart, in C order, under its name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cgpt_convert import names
from cgpt_convert.checkpoint import Checkpoint, Exotic
from cgpt_convert.dtypes import BY_NAME, TABLE
from cgpt_convert.errors import BadRequest, CgptError, Malformed, Unsupported
from cgpt_convert.formats import _planning
from cgpt_convert.limits import INDEX_BYTES
from cgpt_convert.plan import FileDigest, FilePlan, Late, Request
from cgpt_convert.source import LocalFile, MemoryBytes, Source
from cgpt_convert.source import read as read_bytes
from cgpt_convert.strict_json import loads
from cgpt_convert.tensor import Storage, Tensor, c_strides, view

NAME = "parameters"
SUFFIX = ""
FOLDER = True
DTYPES = TABLE  # raw bytes hold everything

MAPPING = "mapping.json"
_ABOUT = "cgpt-convert parameters 1"
_NO_DIGEST = FileDigest("0" * 64, 0)
_FIELDS = {
    "file",
    "dtype",
    "shape",
    "strides",
    "start",
    "byteorder",
    "sha256",
    "crc32",
    "tied_to",
    "conj",
    "neg",
    "quantizer",
}


def plan(request: Request) -> list[FilePlan]:
    """A file for each tensor, little-endian and in C order, and `mapping.json`, last."""
    _planning.check(request, NAME, lambda _tensor: True, splits=False)
    files = names.file_names(tensor.name for tensor in request.tensors)
    rows = {t.name: _row(t, files[t.name], raw=False) for t in request.tensors}
    for alias, kept in request.aliases.items():
        rows[alias] = {**rows[kept], "tied_to": kept}
    data = [FilePlan(files[t.name], (t,), hashed=True) for t in request.tensors]
    return [*data, _mapping_plan(rows, {}, request.metadata)]


def plan_storages(
    tensors: Sequence[Tensor], exotic: Iterable[Exotic], sources: Sequence[Source]
) -> list[FilePlan]:
    """A file for each storage that `tensors` view, as it lies in the archive, and the mapping.

    Storages of several shards go to subfolders, numbered from 1 in the order of `sources`.
    """
    exotic = list(exotic)
    every = [*tensors, *(part for e in exotic for part in e.parts)]
    files = _storage_files([tensor.storage for tensor in every], sources)
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
    data = [FilePlan(files[key], (s.whole(),), hashed=True) for key, s in storages.items()]
    return [*data, _mapping_plan(rows, apart, {})]


def read(path: str) -> Checkpoint:
    """The tensors that the folder's `mapping.json` describes.

    Raises Malformed for a mapping that does not fit the files, naming the tensor.
    """
    where = os.path.join(path, MAPPING)
    source = LocalFile(where)
    if source.nbytes > INDEX_BYTES:
        raise Unsupported(f"a mapping of {source.nbytes:,} bytes", where=where)
    mapping = loads(read_bytes(source, 0, source.nbytes), where)
    if mapping.get("format") != _ABOUT or not isinstance(mapping.get("tensors"), dict):
        raise Malformed(f"not a mapping of the form {_ABOUT!r}", where=where)
    reader = _Reader(path)
    checkpoint = Checkpoint(path, "extracted parameters", (), {})
    for name, row in mapping["tensors"].items():
        checkpoint.tensors[name] = reader.tensor(name, row)
    for name, row in mapping.get("exotic", {}).items():
        checkpoint.exotic[name] = reader.exotic(name, row)
    checkpoint.storages = list(reader.storages.values())
    checkpoint.sources = (source, *(storage.source for storage in checkpoint.storages))
    checkpoint.metadata = mapping.get("metadata", {})
    return checkpoint


def read_mapped(
    path: str, mapping: Mapping[str, tuple[str, str, tuple[int, ...], tuple[int, ...]]]
) -> Checkpoint:
    """The tensors of a folder of bare files.

    Raises BadRequest listing every file that is missing.
    """
    missing = sorted({f for f, *_ in mapping.values() if not os.path.isfile(os.path.join(path, f))})
    if missing:
        raise BadRequest(f"{len(missing)} files are missing: {', '.join(missing[:20])}", where=path)
    reader = _Reader(path)
    checkpoint = Checkpoint(path, "bare parameters", (), {})
    for name, (file, dtype, shape, strides) in mapping.items():
        row = {"file": file, "dtype": dtype, "shape": list(shape), "strides": list(strides)}
        checkpoint.tensors[name] = reader.tensor(name, row | {"start": 0})
    checkpoint.storages = list(reader.storages.values())
    checkpoint.sources = tuple(storage.source for storage in checkpoint.storages)
    return checkpoint


def _storage_files(storages: Sequence[Storage], sources: Sequence[Source]) -> dict[int, str]:
    """Id of storage -> relative file name. Arrays from inside a pickle are numbered apart."""
    shards = {source.name: str(number) for number, source in enumerate(sources, 1)}
    if len(shards) == 1:
        shards = dict.fromkeys(shards, "")
    place: dict[int, tuple[str, str]] = {}  # folder, key
    for storage in storages:
        if id(storage) in place:
            continue
        if isinstance(storage.source, MemoryBytes):
            place[id(storage)] = ("arrays", str(len(place)))
            continue
        # an inflated record is called FILE[RECORD]
        shard = shards.get(storage.source.name.split("[")[0], "")
        folder, _, key = storage.key.rpartition("/")
        place[id(storage)] = ("/".join(filter(None, (shard, folder))), key)
    keys: dict[str, list[str]] = {}
    for folder, key in place.values():
        keys.setdefault(folder, [MAPPING]).append(key)
    safe = {folder: names.file_names(keys[folder]) for folder in keys}
    return {
        storage: f"{folder}/{safe[folder][key]}" if folder else safe[folder][key]
        for storage, (folder, key) in place.items()
    }


def _row(tensor: Tensor, file: str, *, raw: bool) -> dict[str, Any]:
    """What the mapping says of a tensor: as its storage has it, or as `blocks()` yields it."""
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
    tensors: dict[str, Any], exotic: dict[str, Any], metadata: dict[str, str]
) -> FilePlan:
    """`mapping.json`, made when the digests of the files it names are known."""

    def make(digests: Mapping[str, FileDigest]) -> bytes:
        def signed(row: dict[str, Any]) -> dict[str, Any]:
            digest = digests.get(row["file"], _NO_DIGEST)
            return {**row, "sha256": digest.sha256, "crc32": f"{digest.crc32:08x}"}

        mapping = {
            "format": _ABOUT,
            "tensors": {name: signed(row) for name, row in tensors.items()},
            "exotic": {
                name: {**row, "parts": {key: signed(part) for key, part in row["parts"].items()}}
                for name, row in exotic.items()
            },
            "metadata": metadata,
        }
        return (json.dumps(mapping, indent=1) + "\n").encode()

    return FilePlan(MAPPING, (Late(len(make({})), make),))


class _Reader:
    """Rows of a mapping -> tensors over the files of a folder, each file one storage."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.storages: dict[str, Storage] = {}

    def tensor(self, name: str, row: object) -> Tensor:
        where = f"{self.folder}[{name}]"
        if not isinstance(row, dict) or row.keys() - _FIELDS or not _REQUIRED <= row.keys():
            raise Malformed(f"a mapping without {', '.join(sorted(_REQUIRED))}", where=where)
        dtype = BY_NAME.get(row["dtype"]) if isinstance(row["dtype"], str) else None
        if dtype is None:
            raise Unsupported(f"unknown dtype {row['dtype']!r}", where=where)
        shape, strides = (_naturals(row[key], where) for key in ("shape", "strides"))
        if type(row["start"]) is not int:
            raise Malformed("a start that is no integer", where=where)
        try:
            tensor = view(dtype, shape, strides, row["start"], self.storage(row, where))
        except CgptError as error:
            raise error.at(where) from None
        return replace(
            tensor,
            name=name,
            conj=row.get("conj") is True,
            neg=row.get("neg") is True,
            quantizer=str(row.get("quantizer", "")),
        )

    def storage(self, row: dict[str, Any], where: str) -> Storage:
        file, order, crc = row["file"], row.get("byteorder", "little"), row.get("crc32")
        if not isinstance(file, str) or not _INSIDE.fullmatch(file):
            raise Malformed(f"a file outside the folder: {file!r}", where=where)
        if order not in ("little", "big"):
            raise Malformed(f"byte order {order!r}", where=where)
        if crc is not None and not (isinstance(crc, str) and _CRC.fullmatch(crc)):
            raise Malformed(f"a checksum that is none: {crc!r}", where=where)
        if file not in self.storages:
            source = LocalFile(os.path.join(self.folder, *file.split("/")))
            value = int(crc, 16) if crc is not None else None
            self.storages[file] = Storage(source, 0, source.nbytes, file, order, value)
        return self.storages[file]

    def exotic(self, name: str, row: object) -> Exotic:
        match row:
            case {
                "kind": str(kind),
                "dtype": str(dtype),
                "shape": list(shape),
                "detail": str(detail),
                "parts": dict(parts),
            }:
                dims = _naturals(shape, name)
                found = tuple(self.tensor(key, part) for key, part in parts.items())
                return Exotic(name, kind, dtype, dims, detail, found)
        raise Malformed("a mapping of a tensor that is not dense lacks its parts", where=name)


_REQUIRED = {"file", "dtype", "shape", "strides", "start"}
# components that do not begin with a dot, joined by slashes
_INSIDE = re.compile(r"[^./\\\0][^/\\\0]*(/[^./\\\0][^/\\\0]*)*")
_CRC = re.compile("[0-9a-f]{8}")


def _naturals(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise Malformed(f"not a list of natural numbers: {value!r}", where=where)
    return tuple(value)

"""Tensors described by a mapping.json, as views of files in a folder, one storage per file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from cgpt_convert.checkpoint import CompositeTensor
from cgpt_convert.core import file_names
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.text import counted, quoted, quoted_list
from cgpt_convert.sources.local import OpenSource, Source
from cgpt_convert.sources.paths import join, open_all
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.tensor import Storage, Tensor, replace, view

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
_REQUIRED = {"file", "dtype", "shape", "strides", "start"}
_LISTED = 100  # missing files listed in errors
_SHOWN = 80  # characters of a value, in errors
# components that do not begin with a dot, joined by slashes
_INSIDE = re.compile(r"[^./\\\0][^/\\\0]*(/[^./\\\0][^/\\\0]*)*")
_CRC = re.compile("[0-9a-f]{8}")
_SHA256 = re.compile("[0-9a-f]{64}")


def parts(exotic: dict[str, Any]) -> Iterator[object]:
    """Yield the rows of the dense parts of exotic tensors."""
    for row in exotic.values():
        parts = row.get("parts") if isinstance(row, dict) else None
        if isinstance(parts, dict):
            yield from parts.values()


def opened(folder: str, rows: Iterable[object]) -> dict[str, OpenSource]:
    """Open the files that `rows` name, by their paths in the folder.

    Raises Malformed listing all missing files.
    """
    files = [row["file"] for row in rows if isinstance(row, dict) and "file" in row]
    inside = [file for file in files if isinstance(file, str) and _INSIDE.fullmatch(file)]
    names = list(dict.fromkeys(inside))
    sources = dict(zip(names, open_all([join(folder, f) for f in names]), strict=True))
    lost = [name for name, file in sources.items() if file is None]
    if lost:
        verb = "is" if len(lost) == 1 else "are"
        message = f"{counted(len(lost), 'file')} {verb} missing: {quoted_list(lost, _LISTED)}"
        raise Malformed(message, where=folder)
    return {name: file for name, file in sources.items() if file is not None}


class FileRecord(NamedTuple):
    """The recorded file and checksum of a tensor."""

    tensor: str  # "" for copies for other programs
    file: str  # its path inside the folder
    source: Source
    sha256: str | None  # in hex; None if not recorded


class MappingReader:
    """A reader of mapping rows as tensors over files of a folder, one storage per file.

    `rows` are all rows that will be read.
    """

    def __init__(self, folder: str, rows: Iterable[object]) -> None:
        self.folder = folder
        self._files = opened(folder, rows)
        self.storages: dict[str, Storage] = {}

    def tensor(self, name: str, row: object) -> Tensor:
        """Return the tensor `name` that the row describes."""
        where = f"{self.folder}[{name}]"
        if not isinstance(row, dict) or row.keys() - _FIELDS or not row.keys() >= _REQUIRED:
            raise _bad_fields(row, where)
        dtype = BY_NAME.get(row["dtype"]) if isinstance(row["dtype"], str) else None
        if dtype is None:
            message = f"the dtype {quoted(str(row['dtype']), _SHOWN)} is not supported"
            raise Unsupported(message, where=where)
        shape, strides = (_naturals(row[key], where) for key in ("shape", "strides"))
        if type(row["start"]) is not int:
            raise Malformed(f"the start {row['start']!r:.80} is not an integer", where=where)
        storage = self.storage(row, where)
        try:
            tensor = view(dtype, shape, strides, row["start"], storage)
        except CgptError as error:
            error.where = where  # the tensor, not its file, which others may share
            raise
        return replace(
            tensor,
            name=name,
            conj=row.get("conj") is True,
            neg=row.get("neg") is True,
            quantizer=str(row.get("quantizer", "")),
        )

    def storage(self, row: dict[str, Any], where: str) -> Storage:
        """Return the storage for the file of the row; equal files share the storage."""
        file, order, crc = row["file"], row.get("byteorder", "little"), row.get("crc32")
        if not isinstance(file, str) or not _INSIDE.fullmatch(file):
            message = f"the file {quoted(str(file), _SHOWN)} is not a path inside the folder"
            raise Malformed(message, where=where)
        if order not in ("little", "big"):
            message = f"the byte order {quoted(str(order), _SHOWN)} is neither little nor big"
            raise Malformed(message, where=where)
        if crc is not None and not (isinstance(crc, str) and _CRC.fullmatch(crc)):
            message = f"the crc32 {quoted(str(crc), _SHOWN)} is not 8 hexadecimal digits"
            raise Malformed(message, where=where)
        if file not in self.storages:
            source = self._files[file]
            value = int(crc, 16) if crc is not None else None
            key = file_names.tensor_name(file)  # the original key
            key = file if key is None else key
            self.storages[file] = Storage(source, 0, source.nbytes, key, order, value)
        return self.storages[file]

    def recorded(self, name: str, row: object) -> FileRecord:
        """Return the file and checksum that the row records."""
        where = f"{self.folder}[{name}]"
        if not isinstance(row, dict) or "file" not in row:
            raise Malformed("the entry has no file", where=where)
        digest = row.get("sha256")
        if digest is not None and not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
            message = f"the sha256 {quoted(str(digest), _SHOWN)} is not 64 hexadecimal digits"
            raise Malformed(message, where=where)
        return FileRecord(name, row["file"], self.storage(row, where).source, digest)

    def exotic(self, name: str, row: object) -> CompositeTensor:
        """Return the exotic tensor that the row describes."""
        match row:
            case {
                "kind": str(kind),
                "dtype": str(dtype),
                "shape": list(shape),
                "detail": str(detail),
                "parts": dict(parts),
            }:
                dims = _naturals(shape, name)
                tensors = tuple(self.tensor(key, part) for key, part in parts.items())
                return CompositeTensor(name, kind, dtype, dims, detail, tensors)
        message = "the entry does not consist of kind, dtype, shape, detail and parts"
        raise Malformed(message, where=name)


def _bad_fields(row: object, where: str) -> Malformed:
    """Return the error for an entry with missing or unknown fields."""
    fields = row.keys() if isinstance(row, dict) else frozenset[str]()
    missing, unknown = sorted(_REQUIRED - fields), sorted(map(str, fields - _FIELDS))
    what = (
        f"lacks {', '.join(missing)}" if missing else f"has unknown fields: {quoted_list(unknown)}"
    )
    return Malformed(f"the entry {what}", where=where)


def _naturals(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        message = f"{value!r:.80} is not a list of non-negative integers"
        raise Malformed(message, where=where)
    return tuple(value)

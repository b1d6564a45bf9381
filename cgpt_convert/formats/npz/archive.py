"""npz: a ZIP of npy arrays, as `numpy.load` reads it.

The bytes equal those of `numpy.savez` for the same row-major arrays. Information that NumPy cannot
store is in one more array, `__metadata__`: UTF-8 JSON of aliases (dropped name -> kept), true
element types (see `npy.header`) and metadata; it is written only if needed.
"""

from __future__ import annotations

import functools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

from cgpt_convert.archives import zip_writer
from cgpt_convert.archives.zip_archive import Archive, open_archive
from cgpt_convert.archives.zip_directory import STORED
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core import strict_json
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.findings import UNREFERENCED, Finding
from cgpt_convert.core.limits import INDEX_BYTES, NAME_BYTES
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.formats import planning, read_checks
from cgpt_convert.formats.file_kinds import Start
from cgpt_convert.formats.npy import header
from cgpt_convert.formats.registry import FormatFile
from cgpt_convert.plan import DeferredPart, FilePlan, Part, Request, part_nbytes
from cgpt_convert.sources.local import MemoryBytes, Source
from cgpt_convert.sources.paths import open_source
from cgpt_convert.tensors.dtypes import UINT8
from cgpt_convert.tensors.tensor import Storage, Tensor, replace

NAME = "npz"

DTYPES = header.DTYPES

_METADATA = "__metadata__"
_KEYS = {"aliases", "dtypes", "metadata"}
# absolute paths, drives, "..", empty parts, and characters that file systems do not accept
_UNSAFE = re.compile(r"[\0-\x1f\x7f\\]|^[A-Za-z]:|(^|/)\.{0,2}(/|$)")


def plan(request: Request) -> list[FilePlan]:
    """Plan one file. Raises Unsupported naming all tensors whose type or name cannot be stored.

    Names become members of an archive that users unpack: none may point outside its folder, and no
    two may be equal if case is ignored.
    """
    planning.check(request, NAME, lambda tensor: tensor.dtype in DTYPES)
    _check_names(request)
    members: list[tuple[str, tuple[Part, ...]]] = [
        (tensor.name + header.SUFFIX, (header.header_bytes(tensor), tensor))
        for tensor in request.tensors
    ]
    notes = _notes(request)
    if notes:
        head = header.header_bytes(_octets(part_nbytes(notes)))
        members.append((_METADATA + header.SUFFIX, (head, notes)))
    return [FilePlan(os.path.basename(request.name), zip_writer.stored(members))]


def read(path: str) -> Checkpoint:
    """Read the file at `path`, in the archive's order; members may be deflated.

    Arrays of objects (pickles), strings, dates and records, and members that are not arrays, are
    listed as unreadable. Raises Malformed or Unsupported as `zip_archive.open_archive` does, and if
    no array can be read.
    """
    return from_source(open_source(path), path)


def detect(start: Start) -> bool:
    """Return whether there is an array in the archive."""
    return any(name.endswith(header.SUFFIX) for name in start.zip_names)


def read_file(file: FormatFile) -> Checkpoint:
    """Read an open file; see `read`."""
    return from_source(file.source, file.path)


def from_source(source: Source, path: str) -> Checkpoint:
    """Read the npz file in `source`; see `read`."""
    archive = open_archive(source)
    arrays = [name for name in archive.members if name.endswith(header.SUFFIX)]
    others = [name for name in archive.members if not name.endswith(header.SUFFIX)]
    if others and not arrays:
        raise Unsupported("the zip archive contains no arrays (*.npy)", where=path)
    tensors, unread = read_checks.each_read(
        (name.removesuffix(header.SUFFIX), functools.partial(_tensor, archive, name))
        for name in arrays
    )
    notes = _taken_notes(tensors, source.name)
    for name, dtype in notes["dtypes"].items():
        if name not in tensors:
            message = f"{_METADATA} describes {quoted(name)}, which is not an array in the file"
            raise Malformed(message, where=source.name)
        tensors[name] = header.undisguised(tensors[name], dtype, source.name)
    storages = [tensor.storage for tensor in tensors.values()]
    read_checks.add_aliases(tensors, notes["aliases"], source.name)
    findings = archive.findings + header.big_endian(storages)
    if others:
        findings.append(Finding(UNREFERENCED, f"not read: {quoted_list(others)}"))
    checkpoint = Checkpoint(
        path,
        "NumPy npz",
        (source,),
        tensors,
        storages,
        findings=findings,
        metadata=notes["metadata"],
    )
    read_checks.add_unread(checkpoint, unread)
    return checkpoint


def _tensor(archive: Archive, member: str) -> Tensor:
    """Return the array in `member`, named without the suffix."""
    entry = archive.members[member]
    name, crc = member.removesuffix(header.SUFFIX), entry.crc32 if archive.has_crcs else None
    tensor = header.array(Storage(*archive.open(member), name, crc32=crc))
    if entry.method == STORED:
        return tensor
    # reading its header left a quarter of a megabyte in the inflater; a new one is small
    fresh, _, _ = archive.open(member)
    return replace(tensor, storage=replace(tensor.storage, source=fresh))


def _taken_notes(tensors: dict[str, Tensor], where: str) -> dict[str, dict[str, str]]:
    """Remove `__metadata__` from `tensors` and return its contents, if this program wrote it."""
    array = tensors.get(_METADATA)
    if array is None or array.stored != UINT8 or len(array.shape) != 1:
        return {key: {} for key in _KEYS}
    if array.nbytes > INDEX_BYTES:
        message = f"{_METADATA} has {array.nbytes:,} bytes, the limit is {INDEX_BYTES:,}"
        raise Unsupported(message, where=where)
    data = bytearray(array.nbytes)
    array.storage.readinto(0, memoryview(data))
    notes = strict_json.loads(bytes(data), array.storage.label)
    if notes.keys() != _KEYS or not all(map(strict_json.is_text_map, notes.values())):
        message = f"{_METADATA} does not consist of maps named aliases, dtypes and metadata"
        raise Malformed(message, where=where)
    del tensors[_METADATA]
    return notes


def _check_names(request: Request) -> None:
    names = [tensor.name for tensor in request.tensors]
    longest = NAME_BYTES - len(header.SUFFIX)
    unsafe = (quoted(n) for n in names if _UNSAFE.search(n) or len(n.encode()) > longest)
    folded = Counter(map(_folded, [*names, _METADATA]))
    same = [name for name in names if folded[_folded(name)] > 1]
    # in numpy.load the key x.npy means the member x.npy, which is the tensor x
    files = {name + header.SUFFIX for name in names}
    same += [name for name in names if name in files]
    hint = "skip the tensors with --exclude, or write another format"
    planning.refuse(request, "npz archives cannot store tensors with these names", unsafe, hint)
    planning.refuse(
        request, "readers of npz cannot distinguish these names", map(quoted, same), hint
    )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _notes(request: Request) -> bytes | DeferredPart:
    """Return the elements of the `__metadata__` array; empty if there is nothing to record."""
    dtypes = {t.name: t.dtype.name for t in request.tensors if t.dtype in header.DISGUISED}

    def make(metadata: Mapping[str, str]) -> bytes:
        notes = {"aliases": request.aliases, "dtypes": dtypes, "metadata": dict(metadata)}
        if not any(notes.values()):
            return b""
        return json.dumps(notes, sort_keys=True, separators=(",", ":")).encode()

    return planning.with_metadata(request, make)


def _octets(nbytes: int) -> Tensor:
    """Return a placeholder array of `nbytes` bytes, for its header only."""
    return Storage(MemoryBytes(_METADATA, b""), 0, nbytes, _METADATA).whole()

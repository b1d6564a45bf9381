"""Reader for torch ZIP archives (torch 1.6 and later, including TorchScript).

The layout is that of caffe2/serialize/inline_container.cc: `ROOT/data.pkl` names storages by key,
`ROOT/data/KEY` has the bytes of each.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping

from cgpt_convert.archives.zip_archive import SCRIPT, Archive, open_archive
from cgpt_convert.archives.zip_directory import STORED, ZipMember
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core import findings, limits
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.formats.diagnose_zip import MACOS, of_names
from cgpt_convert.formats.torch.torchscript import CONSTANT, script_classes
from cgpt_convert.pickles.decode.decoder import DecodedPickle, decode
from cgpt_convert.pickles.flatten.children import ScriptClasses
from cgpt_convert.pickles.flatten.flatten import fill, record_globals
from cgpt_convert.pickles.nodes import Global, Value, text
from cgpt_convert.sources.local import Source
from cgpt_convert.tensors import dtypes
from cgpt_convert.tensors.dtypes import DType
from cgpt_convert.tensors.tensor import Storage

_VERSIONS = range(1, 11)  # kMinSupportedFileFormatVersion to kMaxSupportedFileFormatVersion


def read(source: Source) -> Checkpoint:
    """Read the archive in `source`.

    Raises Malformed or Unsupported, naming the record or every tensor that cannot be understood.
    """
    return of_archive(open_archive(source))


def of_archive(archive: Archive, known: Mapping[str, DecodedPickle] | None = None) -> Checkpoint:
    """Read an archive whose records are already known; raise errors as `read` does.

    `known` are already decoded pickles, by the names of their records.
    """
    source = archive.source
    root = next(iter(archive.members)).split("/")[0] if archive.members else ""
    _check_root(archive, root)
    script = f"{root}/constants.pkl" in archive.members
    kind = SCRIPT if script else "PyTorch zip archive"
    checkpoint = Checkpoint(source.name, kind, (source,), {}, root=root)
    checkpoint.findings += archive.findings
    if not archive.has_crcs:
        checkpoint.findings.append(Finding(findings.NO_CRC, "a damaged byte would go unnoticed"))
    names: dict[tuple[str, str], int] = {}
    tables = []
    classes: ScriptClasses = {}
    for pickle, folder in (("data", "data"), ("constants", "constants"))[: 2 if script else 1]:
        table = ZipStorages(archive, root, folder)
        name = f"{root}/{pickle}.pkl"
        written = _pickle(archive, name)  # even if decoded already, to compare its checksum
        try:
            decoded = known[name] if known and name in known else decode(written)
        except CgptError as error:
            raise error.at(f"{source.name}[{name}]") from None
        del written  # it can be large
        names |= decoded.globals
        if script and pickle == "data":
            code = functools.partial(_pickle, archive)
            classes = script_classes(archive.members, root, decoded.globals, code)
        before = {*checkpoint, *checkpoint.exotic}
        fill(checkpoint, decoded, table, "constants" if pickle != "data" else "", classes)
        if before - checkpoint.extras.keys():  # there are weights
            constants = {*checkpoint, *checkpoint.exotic} - before
            checkpoint.extras |= dict.fromkeys(sorted(constants), CONSTANT)
        tables.append(table)
    record_globals(checkpoint, names)
    checkpoint.code = [n for n in archive.members if n.startswith(f"{root}/code/")]
    _account(checkpoint, archive, tables)
    return checkpoint


def _check_root(archive: Archive, root: str) -> None:
    where = archive.source.name
    if f"{root}/data.pkl" not in archive.members:
        if f"{root}/.data/extern_modules" in archive.members:
            message = "the file is a torch.package archive, which contains code and pickled objects"
            hint = "save the weights of its model: torch.save(model.state_dict(), 'model.pt')"
            raise Unsupported(message, where=where, hint=hint)
        raise of_names(where, list(archive.members))
    outside = [name for name in archive.members if not name.startswith(root + "/")]
    if any(name.startswith(MACOS) for name in outside):
        raise of_names(where, list(archive.members))
    if outside:
        message = f"the record {quoted(outside[0])} is not in the root folder {quoted(root)}"
        raise Malformed(message, where=where)
    for name in (f"{root}/version", f"{root}/.data/version"):
        if name in archive.members:
            version = _record(archive, name, limits.NAME_BYTES).strip()
            if not version.isdigit() or int(version) not in _VERSIONS:
                shown = quoted(version[:20].decode("latin-1"))
                message = f"the archive format version {shown} is not supported"
                raise Unsupported(message, where=where)


def _pickle(archive: Archive, name: str) -> bytes:
    """Return a pickle's bytes, with a limit on how far they may decompress."""
    most = limits.MiB + limits.INFLATION * archive.members[name].compressed
    return _record(archive, name, min(most, limits.PICKLE.nbytes))


def _record(archive: Archive, name: str, most: int) -> bytes:
    """Return a small record's bytes, checked against its CRC-32."""
    place = f"{archive.source.name}[{name}]"
    try:
        data = archive.read(name, most)
    except CgptError as error:
        raise error.at(place) from None
    if archive.crc32(name) not in (None, zlib.crc32(data)):
        raise Malformed("the record does not match its checksum", where=place)
    return data


class ZipStorages:
    """The storages in one folder of an archive, by the persistent ids of its pickle."""

    def __init__(self, archive: Archive, root: str, folder: str) -> None:
        self.archive = archive
        self.folder = f"{root}/{folder}/"
        self.byteorder = "little"  # absent before torch 2.1
        if f"{root}/byteorder" in archive.members:
            order = _record(archive, f"{root}/byteorder", limits.NAME_BYTES)
            if order not in (b"little", b"big"):
                shown = quoted(order[:20].decode("latin-1"))
                message = f"the byte order {shown} is neither little nor big"
                raise Malformed(message, where=archive.source.name)
            self.byteorder = order.decode()
        self.storages: dict[str, Storage] = {}
        # by id: tensors may share a reference, which is kept so that its id is not reused
        self.known: dict[int, tuple[Value, tuple[Storage, DType | None]]] = {}
        self.declared: dict[str, tuple[DType | None, int]] = {}
        self.made: dict[object, tuple[object, Storage]] = {}
        self.longer: list[str] = []
        self.skipped: list[Storage] = []

    def get(self, reference: Value) -> tuple[Storage, DType | None]:
        """Return the storage and its declared element type; None for an untyped one."""
        if id(reference) in self.known:
            return self.known[id(reference)][1]
        key, dtype, numel, location = storage_reference(reference)
        if self.declared.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise two_declarations(key)
        if key not in self.storages:
            self.storages[key] = self._open(key, numel * (dtype.nbytes if dtype else 1), location)
        self.known[id(reference)] = reference, (self.storages[key], dtype)
        return self.storages[key], dtype

    def _open(self, key: str, nbytes: int, location: str) -> Storage:
        name = self.folder + key
        member = self.archive.members.get(name)
        if member is None:
            raise Malformed(f"the archive has no record {quoted(name)}, which the pickle refers to")
        if member.nbytes < nbytes:
            sizes = f"{member.nbytes:,} bytes, the pickle declares {nbytes:,}"
            raise Malformed(f"the record {quoted(name)} has {sizes}")
        if member.nbytes > nbytes:
            self.longer.append(f"{quoted(key)} by {member.nbytes - nbytes:,} bytes")
        source, offset, size = self.archive.open(name)
        crc = None if _is_skipped(member) else self.archive.crc32(name)
        storage = Storage(source, offset, size, key, self.byteorder, crc, location)
        if self.archive.has_crcs and _is_skipped(member):
            self.skipped.append(storage)
        return storage


def two_declarations(key: str) -> Malformed:
    """Return the error for a storage that a pickle declares twice, differently."""
    return Malformed(f"storage {quoted(key)} is declared with two types or sizes")


def storage_reference(reference: Value) -> tuple[str, DType | None, int, str]:
    """Return key, element type (None if untyped), element count and device of a persistent id.

    torch/serialization.py `persistent_id`: ("storage", class, key, location, numel). Python 2 files
    have bytes for text.
    """
    fields = storage_fields(reference)
    if fields is None:
        raise Malformed(f"the storage reference {text(reference)} is not valid")
    cls, key, numel, location = fields
    return key, storage_dtype(cls), numel, location


def storage_fields(reference: Value) -> tuple[Global, str, int, str] | None:
    """Return class, key, number of elements and device; None if it is not such a reference.

    Formatting an error is slow, and a file may require a million of them.
    """
    match reference:
        case (kind, Global() as cls, key, location, int() as numel, *_):
            kind, key, location = (
                value.decode("latin-1") if isinstance(value, bytes) else value
                for value in (kind, key, location)
            )
            counts = 0 <= numel < limits.INT64 and type(numel) is not bool
            named = isinstance(key, str) and isinstance(location, str)
            if kind == "storage" and counts and named:
                return cls, key, numel, location
    return None


def storage_dtype(cls: Global) -> DType | None:
    """Return the element type of a torch storage class; None for the untyped one."""
    if cls.module == "torch.storage" and cls.name in ("UntypedStorage", "_UntypedStorage"):
        return None
    name = cls.name.removesuffix("Storage")
    if cls.module in ("torch", "torch.cuda") and name != cls.name:
        if name == "Untyped":
            return None
        if name in dtypes.BY_STORAGE:
            return dtypes.BY_STORAGE[name]
    raise Unsupported(f"the storage class {cls} is not supported")


def _account(checkpoint: Checkpoint, archive: Archive, tables: list[ZipStorages]) -> None:
    """Add all storages, referenced or not, and findings for unused data."""
    unused = 0
    for table in tables:
        checkpoint.storages += table.storages.values()
        if table.longer:
            checkpoint.findings.append(Finding(findings.LONGER_STORAGE, ", ".join(table.longer)))
        for name, member in archive.members.items():
            key = name.removeprefix(table.folder)
            if key == name or key in table.storages or name.endswith("/"):
                continue
            unused += member.nbytes
            source, offset, size = archive.open(name)
            crc = archive.crc32(name)
            checkpoint.storages.append(Storage(source, offset, size, key, crc32=crc))
    if unused:
        checkpoint.findings.append(Finding(findings.UNREFERENCED, f"{unused:,} bytes"))
    skipped = {id(storage) for table in tables for storage in table.skipped}
    if skipped:
        checkpoint.unsaved = {n for n, t in checkpoint.items() if id(t.storage) in skipped}
        names = quoted_list(sorted(checkpoint.unsaved))
        checkpoint.findings.append(Finding(findings.VALUES_NOT_SAVED, names))


def _is_skipped(member: ZipMember) -> bool:
    """Return whether the record was reserved under torch.serialization.skip_data(): CRC-32 0."""
    return member.nbytes > 0 and member.crc32 == 0 and member.method == STORED

"""Reader for the stream that torch.save wrote before 1.6.

torch/serialization.py `_legacy_save`: five pickles (magic number, protocol version, system, the
object, the storages' keys), then for each key an int64 number of elements and the elements.
"""

from __future__ import annotations

from typing import NamedTuple

from cgpt_convert.checkpoint import Checkpoint, NonTensorValue
from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.formats.salvage import AGAIN, content_end, sift
from cgpt_convert.formats.torch.pickle_stream import PickleStream, Truncated
from cgpt_convert.formats.torch.storage_views import StorageViews
from cgpt_convert.formats.torch.zip_reader import storage_reference, two_declarations
from cgpt_convert.pickles.decode.decoder import DecodedPickle, decode
from cgpt_convert.pickles.flatten.flatten import fill, record_globals
from cgpt_convert.pickles.nodes import Dict, Global, PersistentId, Value, text
from cgpt_convert.sources.local import Source
from cgpt_convert.sources.unpack import SourceSlice
from cgpt_convert.tensors.dtypes import DType
from cgpt_convert.tensors.tensor import Storage

MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py MAGIC_NUMBER
_WRITTEN = (MAGIC.to_bytes(10, "little"), str(MAGIC).encode())  # protocol 2 and later; earlier
_PROTOCOL = 1001  # PROTOCOL_VERSION
_MAGIC_NBYTES = 64  # more than the number takes in any pickle protocol
_OBJECT_FIRST = 64 << 10  # bytes of the object's pickle tried first
_COUNT_NBYTES = 8
_SHOWN = 5


def is_legacy(start: bytes) -> bool:
    """Return whether a file with these first bytes is a legacy stream, in any pickle protocol."""
    if not any(number in start for number in _WRITTEN):
        return False
    try:
        value = decode(start[:_MAGIC_NBYTES]).value
    except CgptError:
        return False
    return is_magic(value)


def read(source: Source, *, salvage: bool = False) -> Checkpoint:
    """Read the stream in `source`; with `salvage`, the intact tensors of a truncated one.

    Raises Malformed or Unsupported, naming the part or every tensor that cannot be understood; for
    a truncated file the error says what is intact.
    """
    checkpoint, extent = _parse(source)
    if extent.present < extent.needed:
        partial = sift(checkpoint, *extent)
        if salvage:
            return partial.checkpoint
        raise partial.error()
    if extent.needed < source.nbytes:
        detail = f"{source.nbytes - extent.needed:,} bytes"
        checkpoint.findings.append(Finding(findings.TRAILING, detail))
    return checkpoint


class _Extent(NamedTuple):
    """The number of bytes present, and the number that a complete file has."""

    present: int
    needed: int


def is_magic(value: Value) -> bool:
    """Return whether the first pickle of a legacy stream has this value."""
    return type(value) is int and value == MAGIC


def storages_end(source: Source, at: int) -> int | None:
    """Return where the legacy stream at byte `at` ends; None if it is incomplete or malformed.

    Only a full parse shows that the bytes after its five pickles are numbers.
    """
    stream = SourceSlice(source, at, source.nbytes - at, source.name)
    table = LegacyStorages(stream)
    try:
        head = _unpickle(PickleStream(stream), table)
        extent = table.locate(head.stream, _keys(head.keys, source.name))
    except CgptError as error:
        if error.kind == "unreadable":
            raise
        return None
    return at + extent.needed if extent.needed == extent.present else None


class _StreamHead(NamedTuple):
    """The last three pickles at the start of a stream, and the position after them."""

    stream: PickleStream
    system: Value
    decoded: DecodedPickle
    keys: Value


def _unpickle(stream: PickleStream, table: LegacyStorages) -> _StreamHead:
    """Decode the five pickles. Raises Malformed or Unsupported."""
    where = stream.source.name
    if stream.unpickle("magic number").value != MAGIC:
        message = "the magic number is not that of a legacy stream of torch"
        raise Malformed(message, where=where)
    version = stream.unpickle("protocol version").value
    if version != _PROTOCOL:
        message = f"the protocol version {text(version)} is not supported"
        raise Unsupported(message, where=where)
    system = stream.unpickle("system").value
    decoded = stream.unpickle("object", table.resolve, _OBJECT_FIRST)
    return _StreamHead(stream, system, decoded, stream.unpickle("storage keys").value)


def _parse(source: Source) -> tuple[Checkpoint, _Extent]:
    """Parse everything except the bytes of the storages, which may be missing."""
    checkpoint = Checkpoint(source.name, "PyTorch legacy stream", (source,), {})
    table = LegacyStorages(source)
    try:
        head = _unpickle(PickleStream(source), table)
    except Truncated as error:
        error.message = f"the file is truncated before the tensor data: {error.message}"
        error.hint = AGAIN
        raise
    check_system(head.system, checkpoint)
    record_globals(checkpoint, head.decoded.globals)
    extent = table.locate(head.stream, _keys(head.keys, source.name))
    fill(checkpoint, head.decoded, table)
    table.account(checkpoint)
    return checkpoint, extent


def check_system(system: Value, checkpoint: Checkpoint) -> None:
    """Check the system information; add a finding if written on a big-endian machine.

    torch ignores it: elements are always little-endian (torch/csrc/serialization
    `THPStorage_writeFileRaw`). Raises Unsupported for machines with other type sizes.
    """
    info = dict(_text_items(system, checkpoint.path))
    sizes = dict(_text_items(info.get("type_sizes", Dict()), checkpoint.path))
    for name, usual in (("short", (2,)), ("int", (4,)), ("long", (4, 8))):
        if sizes.get(name, usual[0]) not in usual:
            message = f"the machine that wrote the file has {text(sizes[name])} bytes per C {name}"
            raise Unsupported(message, where=checkpoint.path)
    if info.get("little_endian", True) is not True:
        detail = "the machine that wrote the file; the data itself is little-endian"
        checkpoint.findings.append(Finding(findings.BIG_ENDIAN, detail))


def _text_items(value: Value, where: str) -> list[tuple[str, Value]]:
    if not isinstance(value, Dict):
        raise Malformed(f"the system information is not a dict: {text(value)}", where=where)
    return [(key, item) for key, item in value.items if isinstance(key, str)]


def _keys(value: Value, where: str) -> list[str]:
    """Return the storages' keys, without duplicates; Python 2 wrote them as bytes."""
    if not isinstance(value, list) or not all(isinstance(key, str | bytes) for key in value):
        raise Malformed(f"the list of storage keys is not valid: {text(value)}", where=where)
    keys = [key if isinstance(key, str) else key.decode("latin-1") for key in value]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Malformed(f"the storage key {quoted(twice)} is listed twice", where=where)
    return keys


class _StorageDeclaration(NamedTuple):
    """A storage as declared in the pickle. Its elements are bytes if it is untyped."""

    dtype: DType | None
    numel: int
    device: str

    @property
    def nbytes(self) -> int:
        return self.numel * (self.dtype.nbytes if self.dtype else 1)


class LegacyStorages:
    """The storages of a stream: declared while its object is decoded, located afterwards."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.declared: dict[str, _StorageDeclaration] = {}
        self.storages: dict[str, Storage] = {}
        self.made: dict[object, tuple[object, Storage]] = {}
        self.windows = StorageViews()
        self.used: set[str] = set()
        self.code: dict[str, Value] = {}  # class -> the file name and source code saved with it

    def resolve(self, reference: Value) -> Value:
        """Resolve a persistent id: a class to itself; a storage stays a reference."""
        if isinstance(reference, tuple) and reference[:1] == ("module",):
            match reference:
                case (_, Global() as cls, file, code):
                    self.code[str(cls)] = (file, code)
                    return cls
            raise Malformed(f"the class reference {text(reference)} is not valid")
        key, dtype, numel, device = storage_reference(reference)
        known = self.declared.setdefault(key, _StorageDeclaration(dtype, numel, device))
        # empty storages share an address, so torch may declare one with two types
        if known[:2] != (dtype, numel) and (numel or known.numel):
            raise two_declarations(key)
        return PersistentId(reference)

    def locate(self, stream: PickleStream, keys: list[str]) -> _Extent:
        """Locate every storage; in a truncated file they may extend past its end."""
        self._check(keys)
        at, present = stream.at, self.source.nbytes
        for key in keys:
            declared = self.declared[key]
            if at + _COUNT_NBYTES <= present:
                numel = PickleStream(self.source, at).integer()
                if numel != declared.numel:
                    present = self._end_before(stream.at, at, key, numel)
            offset = at + _COUNT_NBYTES
            self.storages[key] = Storage(
                self.source, offset, declared.nbytes, key, device=declared.device
            )
            at = offset + declared.nbytes
        return _Extent(min(present, at), at)

    def _check(self, keys: list[str]) -> None:
        listed = set(keys)
        missing = [key for key in self.declared if key not in listed]
        unknown = [key for key in keys if key not in self.declared]
        for wrong, what in (
            (missing, "the pickle refers to storages that are not in the file"),
            # torch rejects them too: without a type the start of the next is unknown
            (unknown, "the pickle does not refer to these storages, so their types are unknown"),
        ):
            if wrong:
                message = f"{what}: {quoted_list(wrong, _SHOWN)}"
                raise Malformed(message, where=self.source.name)

    def _end_before(self, start: int, at: int, key: str, numel: int) -> int:
        """Return where the data ended if only zeros follow `at`; else raise Malformed."""
        end = content_end(self.source, start)
        if end > at:
            raise Malformed(
                f"storage {quoted(key)} has {numel:,} elements, the pickle declares "
                f"{self.declared[key].numel:,}",
                where=self.source.name,
            )
        return end

    def get(self, reference: Value) -> tuple[Storage, DType | None]:
        """Return the storage and its declared element type; None for an untyped one.

        The optional sixth part of the reference describes a view: (key, first element, elements).
        """
        key, dtype, _, _ = storage_reference(reference)
        self.used.add(key)
        storage = self.storages[key]
        match reference[5:]:
            case () | (None,):
                return storage, dtype
            case ((str() | bytes() as name, int() as first, int() as numel),) if dtype:
                name = name if isinstance(name, str) else name.decode("latin-1")
                size = dtype.nbytes
                return self.windows.get(name, storage, first * size, numel * size), dtype
        raise Malformed(f"the storage view {text(reference)} is not valid")

    def account(self, checkpoint: Checkpoint) -> None:
        """Add all storages, used or not, and the source code of classes to the checkpoint."""
        self.windows.onto_roots(checkpoint)
        checkpoint.storages += self.storages.values()
        unused = sum(s.nbytes for key, s in self.storages.items() if key not in self.used)
        if unused:
            checkpoint.findings.append(Finding(findings.UNREFERENCED, f"{unused:,} bytes"))
        checkpoint.others += [
            NonTensorValue(f"source of {cls}", code) for cls, code in self.code.items()
        ]

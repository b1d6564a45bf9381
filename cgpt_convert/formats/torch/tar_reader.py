"""Reader for the tar that torch.save wrote up to about 0.1.12.

torch/serialization.py `legacy_load` still reads it: storages and tensors are separate members, and
the pickle refers to both by the same numbers.
"""

from __future__ import annotations

from cgpt_convert.archives import tar
from cgpt_convert.archives.tar import TarMember
from cgpt_convert.checkpoint import Checkpoint, NonTensorValue
from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.limits import RANK
from cgpt_convert.core.text import quoted
from cgpt_convert.formats.salvage import AGAIN, content_end
from cgpt_convert.formats.torch.legacy_reader import check_system
from cgpt_convert.formats.torch.pickle_stream import PickleStream, Truncated
from cgpt_convert.formats.torch.storage_views import StorageViews
from cgpt_convert.formats.torch.zip_reader import storage_dtype
from cgpt_convert.pickles.flatten.flatten import fill, record_globals
from cgpt_convert.pickles.nodes import Call, Global, PersistentId, Value, text
from cgpt_convert.sources.local import Source
from cgpt_convert.tensors.dtypes import DType
from cgpt_convert.tensors.tensor import Storage, view

NAMES = ("sys_info", "pickle", "tensors", "storages")  # as torch wrote them
_REBUILD = Global("torch._utils", "_rebuild_tensor")  # the equivalent call for a tensor in the tar
_DIGITS = 20  # of an address in decimal; protocol 0 has references as text
_NDIM_NBYTES, _NDIM_PAD = 4, 4  # formerly an int64; the upper half is skipped


def is_torch_tar(source: Source) -> bool:
    """Return whether the tar in `source` has torch's members."""
    try:
        return tar.members(source)[0].keys() >= set(NAMES)
    except CgptError:
        return False


def read(source: Source) -> Checkpoint:
    """Read the tar in `source`.

    Raises Malformed or Unsupported, naming the member or every tensor that cannot be understood.
    """
    members, end = tar.members(source)
    missing = [name for name in NAMES if name not in members]
    if missing:
        raise Malformed(
            f"the tar has no {' and no '.join(missing)}: it is truncated or not from torch",
            where=source.name,
            hint="download the file again; if it is an ordinary tar, unpack it and pass the weight "
            "file inside",
        )
    checkpoint = Checkpoint(source.name, "PyTorch tar archive", (source,), {})
    parts = {name: _stream(source, members[name]) for name in NAMES}
    try:
        system = parts["sys_info"].unpickle("sys_info").value
        table = TarStorages(parts["storages"], parts["tensors"])
        decoded = parts["pickle"].unpickle("pickle", table.resolve)
    except CgptError as error:
        raise error.at(source.name) from None
    check_system(system, checkpoint)
    record_globals(checkpoint, decoded.globals)
    fill(checkpoint, decoded, table)
    table.account(checkpoint)
    _account(checkpoint, members, end, parts)
    return checkpoint


def _account(
    checkpoint: Checkpoint, members: dict[str, TarMember], end: int, parts: dict[str, PickleStream]
) -> None:
    """Add findings for unused parts: other members, ends of members, data after the tar."""
    unused = {name: parts[name].end - parts[name].at for name in NAMES}
    unused |= {name: member.nbytes for name, member in members.items() if name not in NAMES}
    for name, nbytes in unused.items():
        if nbytes:
            detail = f"{nbytes:,} bytes of {quoted(name)}"
            checkpoint.findings.append(Finding(findings.UNREFERENCED, detail))
    source = checkpoint.sources[0]
    if content_end(source, end) > end:  # tars are padded with zeros
        detail = f"{content_end(source, end) - end:,} bytes"
        checkpoint.findings.append(Finding(findings.TRAILING, detail))


def _stream(source: Source, member: TarMember) -> PickleStream:
    if member.offset + member.nbytes > source.nbytes:
        raise Truncated(
            f"the file is truncated at byte {source.nbytes:,}: the member {quoted(member.name)} "
            f"ends at byte {member.offset + member.nbytes:,}",
            where=source.name,
            hint=AGAIN,
        )
    return PickleStream(source, member.offset, member.offset + member.nbytes)


class TarStorages:
    """The storages and tensors of a tar, by number."""

    def __init__(self, storages: PickleStream, tensors: PickleStream) -> None:
        self.where = storages.source.name
        self.storages: dict[int, tuple[Storage, DType]] = {}
        self.tensors: dict[int, Call] = {}
        self.made: dict[object, tuple[object, Storage]] = {}
        self.windows = StorageViews()
        self.used: set[int] = set()  # ids of the roots that tensors are views of
        self.code: dict[str, Value] = {}  # class -> the file name and source code saved with it
        for _ in range(self._count(storages, "storages")):
            self._read_storage(storages)
        self.roots = [storage for storage, _ in self.storages.values()]
        self._read_windows(storages)
        for _ in range(self._count(tensors, "tensors")):
            self._read_tensor(tensors)

    def _count(self, stream: PickleStream, part: str) -> int:
        count = stream.unpickle(part).value
        if type(count) is not int or count < 0:
            message = f"the number of {part} is not valid: {text(count)}"
            raise Malformed(message, where=self.where)
        return count

    def _read_storage(self, stream: PickleStream) -> None:
        """Read `(key, location, class)`, then the number of elements and the elements."""
        match stream.unpickle("storages").value:
            case (int() as key, str() | bytes() as location, Global() as cls):
                pass
            case other:
                message = f"the storage description {text(other)} is not valid"
                raise Malformed(message, where=self.where)
        dtype = storage_dtype(cls)
        if dtype is None:
            raise Malformed(f"storage {key} has no element type", where=self.where)
        numel = stream.integer()
        if numel < 0:
            raise Malformed(f"storage {key} has {numel:,} elements", where=self.where)
        if key in self.storages:
            raise Malformed(f"storage {key} occurs twice", where=self.where)
        offset = stream.skip(numel * dtype.nbytes)
        device = location if isinstance(location, str) else location.decode("latin-1")
        storage = Storage(stream.source, offset, numel * dtype.nbytes, str(key), device=device)
        self.storages[key] = storage, dtype

    def _read_windows(self, stream: PickleStream) -> None:
        """Read a list of `(key, root key, first element, elements)`."""
        windows = stream.unpickle("storages").value
        for window in windows if isinstance(windows, list) else [windows]:
            match window:
                case (int() as key, int() as root, int() as first, int() as numel) if (
                    root in self.storages and key not in self.storages
                ):
                    whole, dtype = self.storages[root]
                    first, numel = first * dtype.nbytes, numel * dtype.nbytes
                    self.storages[key] = self.windows.get(str(key), whole, first, numel), dtype
                case _:
                    message = f"the storage view {text(window)} is not valid"
                    raise Malformed(message, where=self.where)

    def _read_tensor(self, stream: PickleStream) -> None:
        """Read `(key, storage's key, class)`, then rank, sizes, strides and first element."""
        match stream.unpickle("tensors").value:
            case (int() as key, int() as storage, Global() as cls) if storage in self.storages:
                pass
            case other:
                message = f"the tensor description {text(other)} is not valid"
                raise Malformed(message, where=self.where)
        if key in self.tensors or key in self.storages:
            raise Malformed(f"the number {key} is used twice", where=self.where)
        where, dtype = self.storages[storage]
        if cls.name.removesuffix("Tensor") != dtype.storage:
            message = f"tensor {key} has the class {cls}, its storage has the type {dtype.name}"
            raise Malformed(message, where=self.where)
        rank = stream.integer(_NDIM_NBYTES)
        stream.skip(_NDIM_PAD)
        if not 0 <= rank <= RANK:
            message = f"tensor {key} has {rank:,} dimensions, the limit is {RANK}"
            raise Unsupported(message, where=self.where)
        shape = tuple(stream.integer() for _ in range(rank))
        strides = tuple(stream.integer() for _ in range(rank))
        start = stream.integer()
        view(dtype, shape, strides, start, where)
        args = (PersistentId(storage), start, shape, strides)
        self.tensors[key] = Call(_REBUILD, args, stream.at)

    def resolve(self, reference: Value) -> Value:
        """Resolve a persistent id: a class, a tensor as the call that makes it, a storage."""
        if isinstance(reference, str) and reference.isascii() and reference.isdigit():
            reference = int(reference[:_DIGITS])
        match reference:
            case (Global() as cls, file, code):
                self.code[str(cls)] = (file, code)
                return cls
            case int() if reference in self.tensors:
                return self.tensors[reference]
            case int() if reference in self.storages:
                return PersistentId(reference)
        raise Malformed(f"the reference {text(reference)} is not a storage, tensor or class")

    def get(self, reference: Value) -> tuple[Storage, DType]:
        """Return the storage and its declared element type."""
        if type(reference) is not int or reference not in self.storages:
            raise Malformed(f"the storage {text(reference)} does not exist")
        storage, dtype = self.storages[reference]
        self.used.add(id(self.windows.root(storage)))
        return storage, dtype

    def account(self, checkpoint: Checkpoint) -> None:
        """Add all storages, used or not, and the source code of classes to the checkpoint."""
        self.windows.onto_roots(checkpoint)
        checkpoint.storages += self.roots
        unused = sum(storage.nbytes for storage in self.roots if id(storage) not in self.used)
        if unused:
            detail = f"{unused:,} bytes of storages"
            checkpoint.findings.append(Finding(findings.UNREFERENCED, detail))
        checkpoint.others += [
            NonTensorValue(f"source of {cls}", code) for cls, code in self.code.items()
        ]

"""The contents of the `.metadata` of a DCP: torch unpickles it, this module decodes it as data.

The classes are those of torch/distributed/checkpoint/metadata.py and filesystem.py. Each object is
accepted only in the form in which pickle writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.limits import INT64, NAME, Limits, SizeLimit
from cgpt_convert.core.text import quoted
from cgpt_convert.formats.dcp.dcp_folder import MODULE
from cgpt_convert.pickles.decode.decoder import decode
from cgpt_convert.pickles.flatten.children import distinct
from cgpt_convert.pickles.nodes import Call, Dict, Global, List, Value, text
from cgpt_convert.pickles.torch_calls.argument_checks import dtype_of, integer, shape_of
from cgpt_convert.sources.local import Source, read
from cgpt_convert.tensors.dtypes import DType

Ints = tuple[int, ...]

_FILES = "torch.distributed.checkpoint.filesystem"
# torch 1.13 to 2.2 had the properties of a tensor in another module
_PROPERTIES = (MODULE, "torch.distributed._shard.sharded_tensor.metadata")
# a chunk takes 55 opcodes and 9 objects: this suffices for a million chunks
_LIMITS = Limits(
    opcodes=60_000_000,
    kept=SizeLimit(100_000, 8, 16_000_000),
    memo=SizeLimit(100_000, 3, 24_000_000),
)
_FORMATS = ("_MEM_FORMAT_ENCODING", "MEM_FORMAT_ENCODING")


class Item(NamedTuple):
    """The place of a chunk or an object: bytes of a file in the folder."""

    file: str
    offset: int
    nbytes: int
    transforms: tuple[str, ...]  # applied to the bytes, such as compression

    @property
    def label(self) -> str:
        """File and byte, for messages."""
        return f"{self.file}:{self.offset}"


class Chunk(NamedTuple):
    """A part of a tensor: the index of its first element, its shape and its place."""

    start: Ints
    shape: Ints
    item: Item


class ChunkedTensor(NamedTuple):
    """A tensor as chunks; `error` is set if its description cannot be read."""

    dtype: DType | None
    shape: Ints
    chunks: tuple[Chunk, ...]
    error: CgptError | None = None


class DcpMetadata(NamedTuple):
    """The tensors and pickled objects of a DCP, by name."""

    tensors: dict[str, ChunkedTensor]
    objects: dict[str, Item]
    paths: dict[str, tuple[str | int, ...]]  # name -> keys of the nested dicts and lists to it
    unused: int  # items that nothing refers to
    globals: tuple[tuple[str, str], ...]


def read_metadata(source: Source) -> DcpMetadata:
    """Read a metadata file. Raises Malformed or Unsupported if any part of it is unknown.

    A tensor of an unknown element type or layout has an error instead.
    """
    if source.nbytes > _LIMITS.nbytes:
        message = f"the pickle has {source.nbytes:,} bytes, the limit is {_LIMITS.nbytes:,}"
        raise Unsupported(message, where=source.name)
    try:
        decoded = decode(read(source, 0, source.nbytes), _LIMITS)
        if decoded.end != source.nbytes:
            raise Malformed(f"{source.nbytes - decoded.end:,} bytes follow the pickle")
        found = _metadata(decoded.value)
    except CgptError as error:
        raise error.at(source.name) from None
    return found._replace(globals=tuple(decoded.globals))


def _metadata(value: Value) -> DcpMetadata:
    fields = _fields(value, MODULE, "Metadata")
    items = dict(_items(fields.get("storage_data")))
    used: set[tuple[str, Ints | None]] = set()

    def item(name: str, start: Ints | None) -> Item:
        if (name, start) not in items:
            chunk = "" if start is None else f"the chunk at {list(start)} of "
            raise Malformed(f"storage_data has no entry for {chunk}{quoted(name)}")
        used.add((name, start))
        return items[name, start]

    tensors: dict[str, ChunkedTensor] = {}
    objects: dict[str, Item] = {}
    for name, entry in _named(fields.get("state_dict_metadata"), "state_dict_metadata"):
        if _is(entry, MODULE, "BytesStorageMetadata"):
            objects[name] = item(name, None)
            continue
        tensor = _fields(entry, MODULE, "TensorStorageMetadata")
        shape = shape_of(tensor.get("size"))
        chunks = tuple(
            Chunk(start, size, item(name, start)) for start, size in _chunks(tensor.get("chunks"))
        )
        try:
            dtype, error = _dtype(tensor.get("properties")), None
        except Unsupported as problem:
            dtype, error = None, problem
        tensors[name] = ChunkedTensor(dtype, shape, chunks, error)
    paths = dict(_paths(fields.get("planner_data"), {*tensors, *objects}))
    return DcpMetadata(tensors, objects, paths, len(items.keys() - used), ())


def _is(value: Value, module: str, name: str) -> bool:
    return isinstance(value, Call) and isinstance(value.func, Global) and value.calls(module, name)


def _fields(value: Value, module: str, *names: str) -> dict[str, Value]:
    """Return the attributes of an object of one of the classes `names`, made by pickle."""
    if not (isinstance(value, Call) and value.calls(module, *names)):
        raise Malformed(f"{text(value)} is not an object of the class {module}.{names[0]}")
    plain = value.how == "NEWOBJ" and value.args == () and not (value.items or value.elements)
    if not plain or not isinstance(value.state, Dict | None):
        raise Malformed(f"the object {text(value)} is not pickled as torch pickles {names[0]}")
    if value.state is None:
        return {}
    if value.state.changed > value.changed:
        raise Malformed(f"the attributes of {text(value)} are changed after they are set")
    return dict(_named(value.state, names[0]))


def _named(value: Value, what: str) -> Iterator[tuple[str, Value]]:
    """Yield the pairs of a dict whose keys are distinct strings."""
    if not isinstance(value, Dict):
        raise Malformed(f"{what} is not a dict: {text(value)}")
    pairs, twice = distinct(value.items)
    if twice:
        raise Malformed(f"the key {text(min(twice, key=str))} occurs twice in {what}")
    for key, item in pairs:
        if type(key) is not str:
            raise Malformed(f"the key {text(key)} in {what} is not a string")
        if len(key) > NAME:
            message = f"a name in {what} has {len(key):,} characters, the limit is {NAME:,}"
            raise Unsupported(message)
        yield key, item


def _items(value: Value) -> Iterator[tuple[tuple[str, Ints | None], Item]]:
    """Yield the entries of `storage_data`: name and start of a chunk, and its place."""
    if not isinstance(value, Dict):
        raise Malformed(f"storage_data is not a dict: {text(value)}")
    seen: dict[tuple[str, Ints | None], Item] = {}
    for key, entry in value.items:
        index = _fields(key, MODULE, "MetadataIndex")
        name, offset = index.get("fqn"), index.get("offset")
        if type(name) is not str:
            raise Malformed(f"the index {text(key)} has no name")
        start = None if offset is None else shape_of(offset)
        item = _item(_fields(entry, _FILES, "_StorageInfo"))
        if seen.setdefault((name, start), item) != item:
            raise Malformed(f"storage_data has two places for the same chunk of {quoted(name)}")
        yield (name, start), item


def _item(fields: dict[str, Value]) -> Item:
    file, transforms = fields.get("relative_path"), fields.get("transform_descriptors")
    if type(file) is not str:
        raise Malformed(f"the file of a chunk is {text(file)}, not a string")
    numbers = integer(fields.get("offset")), integer(fields.get("length"))
    if not all(0 <= number < INT64 for number in numbers):
        place = f"offset {numbers[0]:,} and length {numbers[1]:,}"
        raise Malformed(f"the {place} of a chunk are not valid")
    if transforms is None:
        transforms = ()
    if not isinstance(transforms, List | tuple) or {*map(type, transforms)} - {str}:
        raise Malformed(f"the transforms {text(transforms)} are not a list of strings")
    return Item(file, *numbers, tuple(transforms))


def _chunks(value: Value) -> Iterator[tuple[Ints, Ints]]:
    """Yield start and shape of the chunks; repeated ones, such as replicas, only once."""
    if not isinstance(value, List):
        raise Malformed(f"the chunks of a tensor are not a list: {text(value)}")
    every: dict[tuple[Ints, Ints], None] = {}
    for entry in value:
        fields = _fields(entry, MODULE, "ChunkStorageMetadata")
        start, size = shape_of(fields.get("offsets")), shape_of(fields.get("sizes"))
        if len(start) != len(size):
            message = f"a chunk has the start {list(start)} and the shape {list(size)}"
            raise Malformed(f"{message}, of different lengths")
        every[start, size] = None
    yield from every


def _dtype(value: Value) -> DType:
    """Return the element type in the properties of a tensor; Unsupported if it is not strided."""
    module = next((each for each in _PROPERTIES if _is(value, each, "TensorProperties")), "")
    if module and value.how == "NEWOBJ" and value.args == () and not value.items:
        match value.state:
            case (dtype, Call() as layout, bool(), Call() as memory, bool()):
                _check_layout(layout, memory)
                return dtype_of(dtype)
    raise Malformed(f"the tensor properties {text(value)} are not valid")


def _check_layout(layout: Call, memory: Call) -> None:
    formats = isinstance(memory.func, Global) and memory.func.pair in {
        (module, name) for module in _PROPERTIES for name in _FORMATS
    }
    if not (layout.calls("torch.serialization", "_get_layout") and formats):
        raise Malformed(f"the tensor properties {text(layout)}, {text(memory)} are not valid")
    if layout.args != ("torch.strided",):
        raise Unsupported(f"the tensor layout {text(layout.args)} is not supported")


def _paths(value: Value, names: set[str]) -> Iterable[tuple[str, tuple[str | int, ...]]]:
    """Yield the path of each name, if the planner recorded paths as torch's planner does."""
    if not isinstance(value, Dict):
        return
    for name, path in value.items:
        keys = isinstance(path, tuple) and all(type(key) in (str, int) for key in path)
        if name.__class__ is str and name in names and keys and path:
            yield name, path

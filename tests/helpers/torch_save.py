"""What torch.save writes for NumPy's arrays in place of tensors, without torch.

The pickle and every record are those of torch, as tests/helpers/test_torch_save.py proves, so
that tests which only need a file of torch's run without it.
"""

from __future__ import annotations

import collections
import io
import pickle
import struct
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tests.helpers import zips
from tests.helpers.python_pickle import PythonPickler

STORAGES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
    "complex64": "ComplexFloat",
    "complex128": "ComplexDouble",
}
Array = np.ndarray[Any, Any]


class View(NamedTuple):
    """A tensor that NumPy does not make: of more than 64 dimensions, or past the array's end."""

    array: Array
    size: tuple[int, ...]
    stride: tuple[int, ...]


def saved(value: Any, protocol: int = 2) -> bytes:
    """The zip archive that torch.save writes, less its padding; its root folder is `archive`."""
    pickled, storages = _pickled(value, protocol)
    records = {
        "data.pkl": pickled,
        ".format_version": b"1",
        ".storage_alignment": b"64",
        "byteorder": b"little",
        **{f"data/{number}": storage.tobytes() for number, storage in enumerate(storages)},
        "version": b"3\n",
        ".data/serialization_id": b"0" * 40,
    }
    return zips.build([zips.Entry(f"archive/{name}", data) for name, data in records.items()])


def saved_legacy(value: Any, protocol: int = 2) -> bytes:
    """The stream that torch.save writes with `_use_new_zipfile_serialization=False`."""
    pickled, storages = _pickled(value, protocol, legacy=True)
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    head = (0x1950A86A20F9469CFC6C, 1001, system)
    keys = [str(number) for number in range(len(storages))]
    data = [struct.pack("<q", storage.size) + storage.tobytes() for storage in storages]
    before, after = ([pickle.dumps(each, protocol) for each in part] for part in (head, [keys]))
    return b"".join([*before, pickled, *after, *data])


class _Name:
    """A function or class of torch's, by its name."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __call__(self) -> None:
        """Nothing: a pickler takes for a function only what can be called."""


class _Storage:
    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)


_REBUILD = _Name("torch._utils", "_rebuild_tensor_v2")
_CLASSES = {dtype: _Name("torch", f"{name}Storage") for dtype, name in STORAGES.items()}


class _Pickler(PythonPickler):  # type: ignore[misc]  # C's writes no name that is not there
    dispatch: ClassVar[dict[type, Any]] = dict(PythonPickler.dispatch)

    def __init__(self, file: io.BytesIO, protocol: int, *, legacy: bool) -> None:
        super().__init__(file, protocol)
        self.legacy = legacy
        self.storages: dict[int, tuple[Array, _Storage]] = {}

    def persistent_id(self, value: Any) -> Any:
        # a new tuple each time: the same one would be written as a reference to the first
        return (*value.parts,) if isinstance(value, _Storage) else None

    def storage(self, root: Array) -> _Storage:
        if id(root) not in self.storages:
            key = str(len(self.storages))
            more = (None,) if self.legacy else ()  # a legacy storage may be a view of another
            kind = _CLASSES[root.dtype.name]
            storage = _Storage("storage", kind, key, "cpu", root.size, *more)
            self.storages[id(root)] = (root, storage)
        return self.storages[id(root)][1]

    def save_name(self, value: _Name) -> None:
        if self.proto >= 4:
            self.save(value.module)
            self.save(value.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(b"c" + value.module.encode() + b"\n" + value.name.encode() + b"\n")
        self.memoize(value)

    def save_array(self, value: Array) -> None:
        root = value
        while isinstance(root.base, np.ndarray):
            root = root.base
        starts = [each.__array_interface__["data"][0] for each in (value, root)]
        width = value.dtype.itemsize
        strides = tuple(stride // width for stride in value.strides)
        self.save_tensor(value, root, (starts[0] - starts[1]) // width, value.shape, strides)

    def save_view(self, value: View) -> None:
        self.save_tensor(value, value.array, 0, value.size, value.stride)

    def save_tensor(self, value: Any, root: Array, offset: int, *view: tuple[int, ...]) -> None:
        hooks: collections.OrderedDict[str, Any] = collections.OrderedDict()
        rest = (self.storage(root), offset, *view, False, hooks)
        self.save_reduce(_REBUILD, rest, obj=value)

    dispatch[_Name] = save_name
    dispatch[np.ndarray] = save_array
    dispatch[View] = save_view


def _pickled(value: Any, protocol: int, *, legacy: bool = False) -> tuple[bytes, list[Array]]:
    file = io.BytesIO()
    pickler = _Pickler(file, protocol, legacy=legacy)
    pickler.dump(value)
    return file.getvalue(), [root for root, _ in pickler.storages.values()]

"""A dict of NumPy arrays and tensors as a checkpoint, without copying what is contiguous."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.sources.local import MemoryBytes, Source, origins
from cgpt_convert.tensors.dtypes import BY_NAME, DType
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor

# Not a file, so that no configuration or tokenizer is looked for beside it
PATH = "<memory>/tensors"


def in_memory(tensors: Mapping[str, Any]) -> Checkpoint:
    """Return a checkpoint of the arrays and tensors, under the names of the mapping.

    An array must not be changed while the checkpoint is in use. Names of the same array, or of
    views of the same memory with the same layout, are tied. Raises BadRequest for a name that is
    not a string, for other values, and for arrays of types that no format has, such as strings.
    """
    named: dict[str, Tensor] = {}
    storages: dict[tuple[int, int], Storage] = {}
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise BadRequest(f"the name {name!r} is not a string", where=PATH)
        if isinstance(value, Tensor):
            named[name] = value.renamed(name)
        elif isinstance(value, np.ma.MaskedArray):
            raise BadRequest(f"{name!r} is a masked array", where=PATH, hint="fill it: .filled()")
        elif isinstance(value, (np.ndarray, np.generic)):
            named[name] = _tensor(name, np.asarray(value), storages)
        else:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise BadRequest(
                f"{name!r} is a {kind}, not a NumPy array or a Tensor",
                where=PATH,
                hint="convert it with numpy.asarray",
            )
    files: dict[int, Source] = {}
    for tensor in named.values():
        for source in origins(tensor.storage.source):
            if not isinstance(source, MemoryBytes):
                files[id(source)] = source
    every = {id(tensor.storage): tensor.storage for tensor in named.values()}
    return Checkpoint(PATH, "tensors in memory", tuple(files.values()), named, every.values())


def _tensor(name: str, array: np.ndarray, storages: dict[tuple[int, int], Storage]) -> Tensor:
    """Return the array as a tensor.

    One in Fortran order is a transposed view. Other strides and big-endian elements are copied.
    """
    dtype = _dtype(name, array.dtype)
    turned = array.flags.f_contiguous and not array.flags.c_contiguous
    rows = array.T if turned else array
    if rows.dtype.byteorder == _BIG:
        rows = rows.astype(rows.dtype.newbyteorder("<"))
    octets = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
    place = octets.__array_interface__["data"][0], octets.nbytes
    storage = storages.get(place)  # the memory of those is in use, so no other has its address
    if storage is None or not octets.nbytes:
        storage = Storage(MemoryBytes("memory", octets.data), 0, octets.nbytes, name)
        storages[place] = storage
    tensor = Tensor(name, dtype, rows.shape, c_strides(rows.shape), 0, storage)
    return tensor.transposed() if turned else tensor


def _dtype(name: str, dtype: np.dtype[Any]) -> DType:
    known = BY_NAME.get(dtype.name)  # those of ml_dtypes have the names of torch, too
    if known is None or known.kind not in "fiubc" or known.nbytes != dtype.itemsize:
        raise BadRequest(
            f"{name!r} is an array of {dtype.name}, which weights cannot be", where=PATH
        )
    return known


_BIG = ">" if sys.byteorder == "little" else "="

"""A dict of NumPy arrays and tensors as a checkpoint, without copies of contiguous arrays."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.core.text import quoted
from cgpt_convert.sources.local import MemoryBytes, Source, is_in_memory, origins
from cgpt_convert.tensors.dtypes import BY_NAME, DType
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor

# Not an existing path, so that no configuration or tokenizer next to it is used
PATH = "<memory>/tensors"


def in_memory(tensors: Mapping[str, Any]) -> Checkpoint:
    """Return a checkpoint of the arrays and tensors, under the names of the mapping.

    An array must not be changed while the checkpoint is in use. Names of the same array, or of
    views of the same memory with the same layout, are tied. Raises BadRequest for a name that is
    not a string, for other values, and for arrays of types that no format has, such as strings.
    """
    named: dict[str, Tensor] = {}
    storages: _Storages = {}
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise BadRequest(f"the name {name!r} is not a string", where=PATH)
        if isinstance(value, Tensor):
            named[name] = value.renamed(name)
        elif isinstance(value, np.ma.MaskedArray):
            raise BadRequest(
                f"{quoted(name)} is a masked array", where=PATH, hint="pass its .filled()"
            )
        elif isinstance(value, (np.ndarray, np.generic)):
            named[name] = _of_array(name, np.asarray(value), storages)
        elif _is_torch(value):
            named[name] = _of_torch(name, value, storages)
        else:
            raise BadRequest(
                f"{quoted(name)} is a {type(value).__qualname__}, not an array or a tensor",
                where=PATH,
                hint="join nested names with dots, such as 'layer.weight'"
                if isinstance(value, Mapping)
                else "convert it with numpy.asarray",
            )
    files: dict[int, Source] = {}
    for tensor in named.values():
        for source in origins(tensor.storage.source):
            if not is_in_memory(source):
                files[id(source)] = source
    every = {id(tensor.storage): tensor.storage for tensor in named.values()}
    return Checkpoint(PATH, "tensors in memory", tuple(files.values()), named, every.values())


_Storages = dict[tuple[int, int], Storage]  # by address and size


def _of_array(name: str, array: np.ndarray, storages: _Storages) -> Tensor:
    """Return the array as a tensor.

    A Fortran-order array becomes a transposed view. Arrays with other strides or big-endian
    elements are copied.
    """
    dtype = _dtype(name, array.dtype.name)
    turned = array.flags.f_contiguous and not array.flags.c_contiguous
    rows = array.T if turned else array
    if rows.dtype.byteorder == _BIG:
        rows = rows.astype(rows.dtype.newbyteorder("<"))
    octets = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
    tensor = _stored(name, dtype, rows.shape, octets, storages)
    return tensor.transposed() if turned else tensor


def _is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")  # imported, or there is no tensor of it
    return torch is not None and isinstance(value, torch.Tensor)


def _of_torch(name: str, value: Any, storages: _Storages) -> Tensor:
    """Return the torch tensor as a tensor of this package.

    Tensors on other devices and tensors that are not contiguous are copied.
    """
    torch = sys.modules["torch"]
    kind = str(value.layout).removeprefix("torch.")
    kind = "quantized" if value.is_quantized else "meta" if value.is_meta else kind
    if kind != "strided":
        raise BadRequest(f"{quoted(name)} is a {kind} tensor, which is not supported", where=PATH)
    dtype = _dtype(name, str(value.dtype).removeprefix("torch."))
    dense = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    octets = dense.reshape(-1).view(torch.uint8).numpy()
    return _stored(name, dtype, tuple(value.shape), octets, storages)


def _stored(
    name: str, dtype: DType, shape: tuple[int, ...], octets: np.ndarray, storages: _Storages
) -> Tensor:
    """Return the tensor of these bytes, which are in C order."""
    place = octets.__array_interface__["data"][0], octets.nbytes
    storage = storages.get(place)  # arrays in use, so no other array has the same address
    if storage is None or not octets.nbytes:
        storage = Storage(MemoryBytes("memory", octets.data), 0, octets.nbytes, name)
        storages[place] = storage
    return Tensor(name, dtype, shape, c_strides(shape), 0, storage)


def _dtype(name: str, dtype: str) -> DType:
    known = BY_NAME.get(dtype)  # the dtypes of ml_dtypes have torch's names
    if known is None or known.kind not in "fiubc":
        message = f"{quoted(name)} has the dtype {dtype}, which is not supported"
        raise BadRequest(message, where=PATH, hint="convert it to another dtype")
    return known


_BIG = ">" if sys.byteorder == "little" else "="

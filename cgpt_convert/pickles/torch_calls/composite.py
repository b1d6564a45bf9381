"""Calls that make tensors other than one strided view: quantized, sparse, meta and others.

Each function takes the arguments of the function of the same name in torch/_utils.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cgpt_convert.checkpoint import CompositeTensor
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.pickles.flatten.children import of_state
from cgpt_convert.pickles.nodes import Call, Global, Value, text
from cgpt_convert.pickles.torch_calls.argument_checks import dtype_of, integer, integers, shape_of
from cgpt_convert.pickles.torch_calls.dense import StorageTable, attached, inner, storage_of
from cgpt_convert.pickles.torch_calls.placements import local_part
from cgpt_convert.tensors.recast import cast_storage
from cgpt_convert.tensors.tensor import Tensor, replace, view

Rebuilt = Tensor | CompositeTensor | None


_PACKED = ("quint4x2", "quint2x4")  # elements smaller than a byte: no strided view can hold them


def _rebuild_qtensor(
    storages: StorageTable,
    storage: Value,
    offset: Value,
    size: Value,
    stride: Value,
    quantizer: Value,
    _requires_grad: Value,
    _hooks: Value,
) -> Rebuilt:
    where, dtype = storage_of(storages, storage)
    if dtype is None or dtype.kind != "q":
        raise Malformed("the storage of a quantized tensor is not quantized")
    extra: tuple[tuple[str, Value], ...] = ()
    match quantizer:
        case (Global(module="torch") as scheme, (float() | int()) as scale, int() as zero):
            words = f"{scheme}, {scale}, {zero}"
        case (Global(module="torch") as scheme, scales, zeros, int() as axis):
            words, extra = f"{scheme}, axis {axis}", (("scales", scales), ("zero_points", zeros))
        case _:
            raise Malformed(f"not a quantizer: {text(quantizer)}")
    parts = tuple(inner(storages, value).renamed(name) for name, value in extra)
    if dtype.name in _PACKED:
        whole = where.whole().renamed("values")
        return CompositeTensor("", dtype.name, dtype.name, shape_of(size), words, (whole, *parts))
    tensor = view(dtype, integers(size), integers(stride), integer(offset), where)
    if not parts:
        return replace(tensor, quantizer=words)
    if not 0 <= axis < len(tensor.shape) or any(p.numel != tensor.shape[axis] for p in parts):
        raise Malformed(f"scales along axis {axis} do not fit shape {tensor.shape}")
    kind = f"quantized {scheme.name}"
    return CompositeTensor(
        "", kind, dtype.name, tensor.shape, words, (tensor.renamed("values"), *parts)
    )


_COMPRESSED = {  # layout -> names of its two index tensors
    "torch.sparse_csr": ("crow_indices", "col_indices"),
    "torch.sparse_csc": ("ccol_indices", "row_indices"),
    "torch.sparse_bsr": ("crow_indices", "col_indices"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices"),
}


def _rebuild_sparse_tensor(storages: StorageTable, layout: Value, data: Value) -> Rebuilt:
    match layout:
        case Call(func=Global(module="torch.serialization", name="_get_layout"), args=(str(name),)):
            pass
        case _:
            raise Malformed(f"not a layout: {text(layout)}")
    if not isinstance(data, tuple):
        raise Malformed(f"sparse data is not a tuple: {text(data)}")
    if name == "torch.sparse_coo" and len(data) in (3, 4):
        names: tuple[str, ...] = ("indices", "values")
        tensors, size = data[:2], data[2]
    elif name in _COMPRESSED and len(data) == len("iivs"):
        names, tensors, size = (*_COMPRESSED[name], "values"), data[:-1], data[-1]
    else:
        raise Unsupported(f"layout {name} with {len(data)} parts is not supported")
    return _composite(storages, name.removeprefix("torch."), names, tensors, shape_of(size))


def _rebuild_nested_tensor(
    storages: StorageTable, buffer: Value, sizes: Value, strides: Value, offsets: Value
) -> Rebuilt:
    names = ("buffer", "sizes", "strides", "offsets")
    return _composite(storages, "nested", names, (buffer, sizes, strides, offsets), ())


def _composite(
    storages: StorageTable,
    kind: str,
    names: tuple[str, ...],
    values: tuple[Value, ...],
    size: tuple[int, ...],
) -> CompositeTensor:
    parts = []
    for name, value in zip(names, values, strict=True):
        parts.append(inner(storages, value).renamed(name))
    values_at = names.index("values") if "values" in names else 0
    detail = ", ".join(f"{part.name} {part.stored.name}{list(part.shape)}" for part in parts)
    return CompositeTensor("", kind, parts[values_at].stored.name, size, detail, tuple(parts))


def _rebuild_meta_tensor_no_storage(
    _storages: StorageTable, dtype: Value, size: Value, _stride: Value, _requires_grad: Value
) -> Rebuilt:
    return CompositeTensor("", "meta", dtype_of(dtype).name, shape_of(size), "no data was saved")


def _rebuild_wrapper_subclass(
    _storages: StorageTable,
    cls: Value,
    dtype: Value,
    size: Value,
    _stride: Value,
    _offset: Value,
    _layout: Value,
    _device: Value,
    _requires_grad: Value,
) -> Rebuilt:
    return CompositeTensor("", "subclass", dtype_of(dtype).name, shape_of(size), text(cls))


UNINITIALIZED = tuple(
    ("torch.nn.parameter", f"Uninitialized{what}") for what in ("Parameter", "Buffer")
)


def uninitialized() -> CompositeTensor:
    """Return the entry of a lazy module that has not seen an input yet."""
    return CompositeTensor(
        "", "uninitialized", "", (), "a lazy module's tensor, without shape and values"
    )


_DTENSOR = "torch.distributed.tensor.DTensor"
_OLD_DTENSOR = "torch.distributed._tensor.api.DTensor"


def distributed(entry: CompositeTensor, states: Sequence[Value]) -> CompositeTensor:
    """Return a DTensor with its placements; any other entry as it is.

    Its state has the shard of this rank as `_local_tensor`, and the placement as `_spec`.
    """
    if entry.detail not in (_DTENSOR, _OLD_DTENSOR):
        return entry
    spec = next((value for key, value in attached(states) if key == "_spec"), None)
    fields = of_state(spec.state) if isinstance(spec, Call) else ()
    stated = next((value for key, value in fields if key == "placements"), None)
    placements = ", ".join(map(_placement, stated)) if isinstance(stated, tuple) else "not known"
    detail = f"the shard of one rank; placements: {placements}"
    local = local_part(spec, entry.shape)
    return entry._replace(kind="DTensor", detail=detail, local=local)


def _placement(value: Value) -> str:
    """Return a placement as torch prints it: Shard(dim=0), Replicate()."""
    if not (isinstance(value, Call) and isinstance(value.func, Global)):
        return text(value)
    fields = [*of_state(value.state)]
    arguments = ", ".join(f"{key}={text(field)}" if key else text(field) for key, field in fields)
    return f"{value.func.name}({arguments})"


def _rebuild_device_tensor(
    storages: StorageTable, data: Value, dtype: Value, _device: Value, _requires_grad: Value
) -> Rebuilt:
    """Return a tensor of another device, saved as an array or a CPU tensor.

    The saved type may be wider: NumPy has no bfloat16, so torch saves float32 and casts when it
    loads.
    """
    tensor, target = inner(storages, data), dtype_of(dtype)
    if tensor.stored == target:
        return tensor
    key = (id(tensor.storage), tensor.stored.name, target.name)
    if key not in storages.made:
        storages.made[key] = tensor.storage, cast_storage(tensor.storage, tensor.stored, target)
    _, storage = storages.made[key]
    return replace(tensor, stored=target, storage=storage)


COMPOSITE: dict[tuple[str, str], Callable[..., Rebuilt]] = {
    ("torch._utils", "_rebuild_qtensor"): _rebuild_qtensor,
    ("torch._utils", "_rebuild_sparse_tensor"): _rebuild_sparse_tensor,
    ("torch._utils", "_rebuild_nested_tensor"): _rebuild_nested_tensor,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _rebuild_meta_tensor_no_storage,
    ("torch._utils", "_rebuild_wrapper_subclass"): _rebuild_wrapper_subclass,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _rebuild_device_tensor,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _rebuild_device_tensor,
    ("torch._utils", "_rebuild_xla_tensor"): _rebuild_device_tensor,
}

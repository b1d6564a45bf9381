"""The calls by which torch writes a tensor, recognised by exact pattern. None is ever made.

Each function takes the arguments that the function of the same name in torch/_utils.py takes.
Arguments that do not fit the pattern are Malformed: the pattern is the validation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from cgpt_convert import dtypes
from cgpt_convert.checkpoint import Exotic
from cgpt_convert.dtypes import DType
from cgpt_convert.errors import Malformed, Unsupported
from cgpt_convert.inert import Call, Dict, Global, PersistentId, Value, text
from cgpt_convert.limits import RANK
from cgpt_convert.pickles import ndarray
from cgpt_convert.tensor import Storage, Tensor, view

Rebuilt = Tensor | Exotic | None


class StorageTable(Protocol):
    """The storages of a file, by the persistent ids of its pickle."""

    def get(self, reference: Value) -> tuple[Storage, DType | None]:
        """The storage, and the element type its class declares; None if it is untyped."""


def rebuild(call: Call, storages: StorageTable) -> Rebuilt:
    """The tensor that `call` describes, unnamed; None if it is no call that makes a tensor.

    Raises Malformed if it is one but its arguments do not fit, Unsupported for unknown types.
    """
    bare, _ = unwrap(call)
    recognise = _COMPOSITE.get(_name(bare))
    if recognise is not None:
        return recognise(storages, *_exactly(bare, recognise, given=1))
    return _plain(bare, storages)


def unwrap(call: Call) -> tuple[Call, list[Value]]:
    """The call inside the wrappers that make a parameter or a subclass, and what they attach.

    Each of the states attached is a dict of attributes, or what a subclass makes of it.
    """
    states = []
    for _ in range(_WRAPPED):
        name = _name(call)
        if name in _WRAPPERS:
            recognise = _WRAPPERS[name]
            call, state = recognise(*_exactly(call, recognise, given=0))
            if state is not None:
                states.append(state)
        elif ".".join(name) in _VARIABLES:
            call = _variable(call)
        else:
            return call, states
    raise Unsupported(f"more than {_WRAPPED} wrappers around one tensor")


_WRAPPED = 8  # a subclass of a parameter takes 2


def _name(call: Call) -> tuple[str, str]:
    func = call.func
    return (func.module, func.name) if isinstance(func, Global) else ("", "")


def _plain(call: Call, storages: StorageTable) -> Tensor | None:
    """The tensor that is one strided view; None if the call makes no such tensor."""
    module, name = _name(call)
    if (module, name) in _DENSE:
        recognise = _DENSE[module, name]
        return recognise(storages, *_exactly(call, recognise, given=1))
    if module in ("torch", "torch.cuda") and name.removesuffix("Tensor") in dtypes.BY_STORAGE:
        return _typed_tensor(storages, call)
    if ndarray.is_array(call):
        try:
            return ndarray.array(call)
        except Unsupported:  # of text or of objects: no tensor to any reader
            return None
    return None


def dtype_of(value: Value) -> DType:
    """The element type that a pickled `torch.dtype` names."""
    match value:
        case Global(module="torch", name=name) if name in dtypes.BY_TORCH:
            return dtypes.BY_TORCH[name]
    raise Unsupported(f"unknown dtype {text(value)}")


def _exactly(call: Call, recognise: Callable[..., object], *, given: int) -> tuple[Value, ...]:
    """The call's arguments, if `recognise` takes as many after those `given`, and nothing is added.

    torch's unpicklers let a file change a tensor that they have made (BUILD, SETITEM). No torch
    writes that, and readers would disagree about the values.
    """
    code = recognise.__code__
    most = code.co_argcount - given
    least = most - len(recognise.__defaults__ or ())
    if not (isinstance(call.args, tuple) and least <= len(call.args) <= most):
        raise Malformed(f"{call.func} with the arguments {text(call.args)}")
    if call.how != "REDUCE" or call.state is not None or call.items or call.elements:
        raise Malformed(f"a tensor that is changed after it is made: {text(call)}")
    return call.args


def _ints(value: Value) -> tuple[int, ...]:
    if isinstance(value, Call) and value.calls("torch", "Size") and isinstance(value.args, tuple):
        value = value.args[0] if len(value.args) == 1 else value.args
    if isinstance(value, tuple | list) and len(value) > RANK:
        raise Unsupported(f"{len(value)} dimensions")
    if not isinstance(value, tuple | list) or not all(type(item) is int for item in value):
        raise Malformed(f"not a tuple of integers: {text(value)}")
    return tuple(value)


def _shape(value: Value) -> tuple[int, ...]:
    """The sizes of a tensor that is no view, so that no storage bounds them."""
    sizes = _ints(value)
    if len(sizes) > RANK or not all(0 <= size < _INT64 for size in sizes):
        raise Malformed(f"a tensor of shape {text(sizes)}")
    return sizes


_INT64 = 1 << 63


def _int(value: Value) -> int:
    if type(value) is not int:
        raise Malformed(f"not an integer: {text(value)}")
    return value


def _storage(storages: StorageTable, value: Value) -> tuple[Storage, DType | None]:
    if not isinstance(value, PersistentId):
        raise Malformed(f"not a reference to a storage: {text(value)}")
    return storages.get(value.value)


def _dense(
    storages: StorageTable, storage: Value, offset: Value, size: Value, stride: Value
) -> Tensor:
    where, dtype = _storage(storages, storage)
    return view(dtype or dtypes.UINT8, _ints(size), _ints(stride), _int(offset), where)


def _with_bits(tensor: Tensor, metadata: Value) -> Tensor:
    """The tensor with torch's lazy conjugate and negative bits, which its bytes do not have."""
    bits = {}
    if metadata is not None:
        if not isinstance(metadata, Dict):
            raise Malformed(f"tensor metadata that is no dict: {text(metadata)}")
        for key, value in metadata.items:
            if key not in ("conj", "neg") or type(value) is not bool:
                raise Unsupported(f"tensor metadata {text(metadata)}")
            bits[key] = value
    if bits.get("conj") and tensor.stored.kind != "c":
        raise Malformed(f"a conjugate bit on {tensor.stored.name}")
    return replace(tensor, conj=bits.get("conj", False), neg=bits.get("neg", False))


def _rebuild_tensor(
    storages: StorageTable, storage: Value, offset: Value, size: Value, stride: Value
) -> Tensor:
    return _dense(storages, storage, offset, size, stride)


def _rebuild_tensor_v2(
    storages: StorageTable,
    storage: Value,
    offset: Value,
    size: Value,
    stride: Value,
    _requires_grad: Value,
    _hooks: Value,
    metadata: Value = None,
) -> Tensor:
    return _with_bits(_dense(storages, storage, offset, size, stride), metadata)


def _rebuild_tensor_v3(
    storages: StorageTable,
    storage: Value,
    offset: Value,
    size: Value,
    stride: Value,
    _requires_grad: Value,
    _hooks: Value,
    dtype: Value,
    metadata: Value = None,
) -> Tensor:
    where, _ = _storage(storages, storage)  # untyped: its size counts bytes
    tensor = view(dtype_of(dtype), _ints(size), _ints(stride), _int(offset), where)
    return _with_bits(tensor, metadata)


def _rebuild_parameter(
    data: Value, _requires_grad: Value, _hooks: Value, state: Value = None
) -> tuple[Call, Value]:
    return _tensor_call(data), state


def _rebuild_from_type_v2(
    func: Value, _type: Value, args: Value, state: Value
) -> tuple[Call, Value]:
    return Call(func, args, 0), state


def _tensor_call(data: Value) -> Call:
    if not isinstance(data, Call):
        raise Malformed(f"not a tensor: {text(data)}")
    return data


def _inner(storages: StorageTable, data: Value) -> Tensor:
    """A tensor that another one is made of; it must be a plain one."""
    tensor = _plain(unwrap(_tensor_call(data))[0], storages)
    if tensor is None:
        raise Malformed(f"not a dense tensor: {text(data)}")
    return tensor


def _typed_tensor(storages: StorageTable, call: Call) -> Tensor:
    """`torch.FloatTensor` and kin, as torch 0.1 pickled them: the state is the view."""
    state = call.state
    match state, call.args:
        case (storage, offset, size, stride), ():
            tensor = _dense(storages, storage, offset, size, stride)
        case _:
            raise Malformed(f"{call.func} with {text(call.args)} and state {text(state)}")
    if tensor.stored.storage != _name(call)[1].removesuffix("Tensor"):
        raise Malformed(f"{call.func} over a storage of {tensor.stored.name}")
    return tensor


_VARIABLES = ("torch.autograd.variable.Variable", "torch.nn.parameter.Parameter")


def _variable(call: Call) -> Call:
    """The tensor in a parameter as torch pickled it up to 0.3: its argument, or in its state.

    torch/_tensor.py `__setstate__` still takes both: 3 parts without the data, 5 with.
    """
    match call.args, call.state:
        case ((data,) | (data, bool()), None | (_, _, _)) | ((), (data, _, _, _, _)):
            return _tensor_call(data)
    raise Malformed(f"{call.func} with {text(call.args)} and state {text(call.state)}")


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
    where, dtype = _storage(storages, storage)
    if dtype is None or dtype.kind != "q":
        raise Malformed("a quantized tensor whose storage is not quantized")
    extra: tuple[tuple[str, Value], ...] = ()
    match quantizer:
        case (Global(module="torch") as scheme, (float() | int()) as scale, int() as zero):
            words = f"{scheme}, {scale}, {zero}"
        case (Global(module="torch") as scheme, scales, zeros, int() as axis):
            words, extra = f"{scheme}, axis {axis}", (("scales", scales), ("zero_points", zeros))
        case _:
            raise Malformed(f"not a quantizer: {text(quantizer)}")
    parts = tuple(_inner(storages, value).renamed(name) for name, value in extra)
    if dtype.name in _PACKED:
        whole = where.whole().renamed("values")
        return Exotic("", dtype.name, dtype.name, _shape(size), words, (whole, *parts))
    tensor = view(dtype, _ints(size), _ints(stride), _int(offset), where)
    if not parts:
        return replace(tensor, quantizer=words)
    if not 0 <= axis < len(tensor.shape) or any(p.numel != tensor.shape[axis] for p in parts):
        raise Malformed(f"scales along axis {axis} do not fit shape {tensor.shape}")
    kind = f"quantized {scheme.name}"
    return Exotic("", kind, dtype.name, tensor.shape, words, (tensor.renamed("values"), *parts))


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
        raise Malformed(f"sparse data that is no tuple: {text(data)}")
    if name == "torch.sparse_coo" and len(data) in (3, 4):
        names: tuple[str, ...] = ("indices", "values")
        tensors, size = data[:2], data[2]
    elif name in _COMPRESSED and len(data) == len("iivs"):
        names, tensors, size = (*_COMPRESSED[name], "values"), data[:-1], data[-1]
    else:
        raise Unsupported(f"layout {name} with {len(data)} parts")
    return _composite(storages, name.removeprefix("torch."), names, tensors, _shape(size))


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
) -> Exotic:
    parts = []
    for name, value in zip(names, values, strict=True):
        parts.append(_inner(storages, value).renamed(name))
    values_at = names.index("values") if "values" in names else 0
    detail = ", ".join(f"{part.name} {part.stored.name}{list(part.shape)}" for part in parts)
    return Exotic("", kind, parts[values_at].stored.name, size, detail, tuple(parts))


def _rebuild_meta_tensor_no_storage(
    _storages: StorageTable, dtype: Value, size: Value, _stride: Value, _requires_grad: Value
) -> Rebuilt:
    return Exotic("", "meta", dtype_of(dtype).name, _shape(size), "no data was saved")


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
    return Exotic("", "subclass", dtype_of(dtype).name, _shape(size), text(cls))


def _rebuild_device_tensor(
    storages: StorageTable, data: Value, dtype: Value, _device: Value, _requires_grad: Value
) -> Rebuilt:
    """From another device's copy: an array or a tensor of the same type."""
    tensor = _inner(storages, data)
    if tensor.stored != dtype_of(dtype):
        raise Unsupported(f"a device tensor of {text(dtype)} saved as {tensor.stored.name}")
    return tensor


_WRAPPERS: dict[tuple[str, str], Callable[..., tuple[Call, Value]]] = {
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type"): _rebuild_from_type_v2,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type_v2,
    ("torch.tensor", "_rebuild_from_type"): _rebuild_from_type_v2,
    ("torch.tensor", "_rebuild_from_type_v2"): _rebuild_from_type_v2,
}
_DENSE: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
}
_COMPOSITE: dict[tuple[str, str], Callable[..., Rebuilt]] = {
    ("torch._utils", "_rebuild_qtensor"): _rebuild_qtensor,
    ("torch._utils", "_rebuild_sparse_tensor"): _rebuild_sparse_tensor,
    ("torch._utils", "_rebuild_nested_tensor"): _rebuild_nested_tensor,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _rebuild_meta_tensor_no_storage,
    ("torch._utils", "_rebuild_wrapper_subclass"): _rebuild_wrapper_subclass,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _rebuild_device_tensor,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _rebuild_device_tensor,
    ("torch._utils", "_rebuild_xla_tensor"): _rebuild_device_tensor,
}

_BUILTINS = (
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "long",
    "object",
    "range",
    "set",
    "slice",
    "str",
    "tuple",
    "xrange",
)

# Names that real weight files mention and that say nothing but data. Exact names, no patterns:
# anything else is shown as foreign.
KNOWN = frozenset(
    {f"{module}.{name}" for module, name in (*_WRAPPERS, *_DENSE, *_COMPOSITE)}
    | {f"torch.{row.storage}Storage" for row in dtypes.TABLE if row.storage}
    | {f"torch.cuda.{row.storage}Storage" for row in dtypes.TABLE if row.storage}
    | {f"torch.{row.storage}Tensor" for row in dtypes.TABLE if row.storage}
    | {f"torch.{name}" for name in dtypes.BY_TORCH}
    | {
        f"torch.per_{what}_{how}"
        for what in ("tensor", "channel")
        for how in ("affine", "symmetric")
    }
    | set(ndarray.KNOWN)
    | set(_VARIABLES)
    | {
        "_codecs.encode",
        "collections.Counter",
        "collections.OrderedDict",
        "collections.defaultdict",
        "torch.Size",
        "torch.Tensor",
        "torch._tensor.Tensor",
        "torch.device",
        "torch.nn.parameter.Buffer",
        "torch.per_channel_affine_float_qparams",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
    | {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS}
)

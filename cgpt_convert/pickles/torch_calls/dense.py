"""Calls that make a tensor as one strided view of a storage, and calls that wrap such a call.

Wrappers make a parameter or a subclass; each returns the inner call and the state that it attaches.
Each function takes the arguments of the function of the same name in torch/_utils.py or
torch/_tensor.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.pickles.flatten.children import Pairs, distinct, of_state
from cgpt_convert.pickles.nodes import Call, Dict, Global, PersistentId, Value, text
from cgpt_convert.pickles.torch_calls import numpy_arrays
from cgpt_convert.pickles.torch_calls.argument_checks import (
    Ambiguous,
    arguments,
    dtype_of,
    integer,
    integers,
    name_of,
)
from cgpt_convert.tensors import dtypes
from cgpt_convert.tensors.dtypes import DType
from cgpt_convert.tensors.tensor import Storage, Tensor, replace, view


class StorageTable(Protocol):
    """The storages of a file, by the persistent ids of its pickle.

    `made` keeps the storages created from calls and from other storages, so that shared data stays
    shared. Keys are ids; each entry also holds the object with that id, so that the id is not
    reused.
    """

    made: dict[object, tuple[object, Storage]]

    def get(self, reference: Value) -> tuple[Storage, DType | None]:
        """Return the storage and its declared element type; None for an untyped one."""


def plain(call: Call, storages: StorageTable) -> Tensor | None:
    """Return the tensor if it is one strided view; None if the call makes no such tensor."""
    recognise = DENSE.get(name_of(call))
    if recognise is not None:
        return recognise(storages, *arguments(call, recognise, given=1))
    module, name = name_of(call)
    if module in ("torch", "torch.cuda") and name.removesuffix("Tensor") in dtypes.BY_STORAGE:
        return _typed_tensor(storages, call)
    if (module, name) in _CONSTRUCTED or module in _SPARSE:
        raise Unsupported(
            f"tensors created by the constructor of {module}.{name} are not supported"
        )
    if numpy_arrays.is_array(call):
        try:
            tensor = numpy_arrays.array(call)
        except Unsupported:  # of text or of objects: no tensor to any reader
            return None
        _, storage = storages.made.setdefault(id(call), (call, tensor.storage))
        return replace(tensor, storage=storage)
    return None


_CONSTRUCTED = (("torch", "Tensor"), ("torch._tensor", "Tensor"))
_SPARSE = ("torch.sparse", "torch.cuda.sparse")


def inner(storages: StorageTable, data: Value) -> Tensor:
    """Return a tensor that another one consists of; it must be a plain one."""
    call, states = unwrap(tensor_call(data))
    tensor = plain(call, storages)
    if tensor is None or data_of(states) is not None:
        raise Malformed(f"not a dense tensor: {text(data)}")
    return tensor


def storage_of(storages: StorageTable, value: Value) -> tuple[Storage, DType | None]:
    """Return the storage for a persistent id, with its type as in StorageTable.get."""
    if not isinstance(value, PersistentId):
        raise Malformed(f"not a reference to a storage: {text(value)}")
    return storages.get(value.value)


def _dense(
    storages: StorageTable, storage: Value, offset: Value, size: Value, stride: Value
) -> Tensor:
    where, dtype = storage_of(storages, storage)
    return view(dtype or dtypes.UINT8, integers(size), integers(stride), integer(offset), where)


def _with_bits(tensor: Tensor, metadata: Value) -> Tensor:
    """Return the tensor with torch's lazy conj and neg bits, not yet applied to its bytes."""
    if metadata is None:
        return tensor
    bits = {}
    if not isinstance(metadata, Dict):
        raise Malformed(f"tensor metadata is not a dict: {text(metadata)}")
    for key, value in metadata.items:  # torch looks at the keys only, and never writes False
        if key not in ("conj", "neg") or value is not True:
            raise Unsupported(f"tensor metadata {text(metadata)} is not supported")
        bits[key] = value
    if bits.get("conj") and tensor.stored.kind != "c":
        raise Malformed(f"the conjugate bit is set for {tensor.stored.name}")
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
    where, _ = storage_of(storages, storage)  # untyped: its size counts bytes
    tensor = view(dtype_of(dtype), integers(size), integers(stride), integer(offset), where)
    return _with_bits(tensor, metadata)


def _typed_tensor(storages: StorageTable, call: Call) -> Tensor:
    """Return a `torch.FloatTensor` or similar, as torch 0.1 pickled it: the state is the view."""
    state = call.state
    match state, call.args:
        case (storage, offset, size, stride), ():
            tensor = _dense(storages, storage, offset, size, stride)
        case _:
            raise Malformed(f"{call.func} with {text(call.args)} and state {text(state)}")
    if tensor.stored.storage != name_of(call)[1].removesuffix("Tensor"):
        raise Malformed(f"{call.func} over a storage of {tensor.stored.name}")
    return tensor


DENSE: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
}


def unwrap(call: Call) -> tuple[Call, list[Value]]:
    """Return the call inside parameter and subclass wrappers, and the states they attach.

    Each state is a dict of attributes, or the form that a subclass gives it.
    """
    states: list[Value] = []
    for wrapped in range(_WRAPPED):
        name = name_of(call)
        recognise = WRAPPERS.get(name)
        if recognise is not None:
            inner, state = recognise(*arguments(call, recognise, given=0))
            if inner.position == _WITHIN:
                inner.position = call.position
            if state is not None:
                if wrapped and _is_plain(call):
                    raise Malformed(f"attributes that a parameter does not take over: {text(call)}")
                states.append(state)
            call = inner
        elif name in VARIABLES:
            call = _variable(call)
        else:
            return call, states
    raise Unsupported(f"a tensor is wrapped more than {_WRAPPED} times")


_WRAPPED = 8  # a subclass of a parameter takes 2
_WITHIN = -1  # the position of a call that a wrapper makes of its own arguments


def _is_plain(wrapper: Call) -> bool:
    """Return whether the wrapper makes a Tensor or a Parameter, and not another subclass."""
    match wrapper.args:
        case (Global() as func, Global() as made, *_) if func is not made:
            return made.pair in _PLAIN
    return True


_PLAIN = (("torch", "Tensor"), ("torch._tensor", "Tensor"), ("torch.nn.parameter", "Parameter"))


def data_of(states: Sequence[Value]) -> Value:
    """Return the tensor that provides the values, given these states; None if it has its own.

    torch sets each attribute in turn: `data` replaces the values, `real` and `imag` write into the
    storage, which other tensors may share. `states` are those of `unwrap`, outermost first.
    """
    data = None
    for name, value in attached(states):
        if name in _WRITES:
            raise Ambiguous(f"a tensor's attribute {name!r} writes into its storage")
        if name in _REPLACES:
            raise Malformed(f"a tensor's attribute {name!r} is set")
        if name == DATA:
            data = value
    return data


def attached(states: Sequence[Value]) -> Pairs:
    """Return the attributes that the states give a tensor; outer ones override inner ones."""
    pairs = [pair for state in reversed(states) for pair in of_state(state)]
    return distinct(pairs)[0]


DATA = "data"
_WRITES = ("real", "imag")
_REPLACES = ("__class__", "__dict__", "_grad")  # setting these changes other attributes


def _rebuild_parameter(
    data: Value, _requires_grad: Value, _hooks: Value, state: Value = None
) -> tuple[Call, Value]:
    return tensor_call(data), state


def _rebuild_from_type_v2(
    func: Value, _type: Value, args: Value, state: Value
) -> tuple[Call, Value]:
    return Call(func, args, _WITHIN), state


def tensor_call(data: Value) -> Call:
    """Return the value, which must be a call."""
    if not isinstance(data, Call):
        raise Malformed(f"not a tensor: {text(data)}")
    return data


VARIABLES = (("torch.autograd.variable", "Variable"), ("torch.nn.parameter", "Parameter"))


def _variable(call: Call) -> Call:
    """Return the tensor in a parameter of torch up to 0.3, from its argument or its state.

    torch/_tensor.py `__setstate__` still accepts both: 3 parts without the data, 5 with.
    """
    match call.args, call.state:
        case ((data,) | (data, bool()), None | (_, _, _)) | ((), (data, _, _, _, _)):
            return tensor_call(data)
    raise Malformed(f"{call.func} with {text(call.args)} and state {text(call.state)}")


WRAPPERS: dict[tuple[str, str], Callable[..., tuple[Call, Value]]] = {
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type"): _rebuild_from_type_v2,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type_v2,
    ("torch.tensor", "_rebuild_from_type"): _rebuild_from_type_v2,
    ("torch.tensor", "_rebuild_from_type_v2"): _rebuild_from_type_v2,
}

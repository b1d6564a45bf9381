"""Recognition of torch's tensor calls by exact pattern; no call is executed.

Arguments that do not fit the pattern are Malformed: the pattern is the validation.
"""

from __future__ import annotations

from cgpt_convert.checkpoint import CompositeTensor
from cgpt_convert.pickles.nodes import Call, Value
from cgpt_convert.pickles.torch_calls import numpy_arrays
from cgpt_convert.pickles.torch_calls.argument_checks import arguments, name_of
from cgpt_convert.pickles.torch_calls.composite import (
    COMPOSITE,
    UNINITIALIZED,
    Rebuilt,
    distributed,
    uninitialized,
)
from cgpt_convert.pickles.torch_calls.dense import (
    DENSE,
    VARIABLES,
    WRAPPERS,
    StorageTable,
    data_of,
    inner,
    plain,
    unwrap,
)
from cgpt_convert.tensors import dtypes


def rebuild(call: Call, storages: StorageTable) -> tuple[Rebuilt, list[Value]]:
    """Return the tensor that `call` describes, unnamed, and the states attached to it.

    The tensor is None if the call does not make one. Raises Malformed if it does but its arguments
    do not fit, Unsupported for unknown types.
    """
    bare, states = unwrap(call)
    name = name_of(bare)
    recognise = COMPOSITE.get(name)
    if name in UNINITIALIZED:
        return uninitialized(), []
    if recognise is not None:
        tensor = recognise(storages, *arguments(bare, recognise, given=1))
    else:
        tensor = plain(bare, storages)
    if isinstance(tensor, CompositeTensor):
        tensor = distributed(tensor, states)
    data = data_of(states)
    return (tensor if data is None else inner(storages, data)), states


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
    {f"{module}.{name}" for module, name in (*WRAPPERS, *VARIABLES, *DENSE, *COMPOSITE)}
    | {f"torch.{row.storage}Storage" for row in dtypes.TABLE if row.storage}
    | {f"torch.cuda.{row.storage}Storage" for row in dtypes.TABLE if row.storage}
    | {f"torch.{row.storage}Tensor" for row in dtypes.TABLE if row.storage}
    | {f"torch.{name}" for name in dtypes.BY_TORCH}
    | {
        f"torch.per_{what}_{how}"
        for what in ("tensor", "channel")
        for how in ("affine", "symmetric")
    }
    | set(numpy_arrays.KNOWN)
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

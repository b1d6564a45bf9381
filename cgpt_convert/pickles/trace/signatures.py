"""The calls that weight files need: arguments and permitted additions for each name.

The tracer accepts a call of an allowed name only in this form. A name that is harmless as its
writer calls it may run code with other arguments, or keep a function that later opcodes call.
"""

from __future__ import annotations

from cgpt_convert.pickles.nodes import PersistentId, Value
from cgpt_convert.pickles.trace.call_checks import (
    NEVER,
    Accept,
    Signature,
    each_of,
    either,
    first,
    fixed,
    is_any,
    is_bytes,
    is_data,
    is_flag,
    is_integer,
    is_integers,
    is_items,
    is_mapping,
    is_none,
    is_number,
    is_state,
    is_state_of_any,
    is_state_of_dict,
    is_text,
    made,
    named,
    one_of,
    tuple_of,
)
from cgpt_convert.pickles.trace.numpy_signatures import NUMPY
from cgpt_convert.pickles.trace.trace_stack import DROPPED
from cgpt_convert.pickles.trace.uses import CallResult, TracedName
from cgpt_convert.tensors import dtypes

_NEW = ("NEWOBJ",)
_BOTH = ("REDUCE", "NEWOBJ")
_PLAIN = CallResult("value", "builtins.object")

# -- references to data outside the pickle

_STORAGE = CallResult("storage", "torch.storage.UntypedStorage")
_REFERENCE = CallResult(
    "reference", "torch.Tensor"
)  # to a storage or a tensor, in a tar of torch 0.1
_is_storage_reference = tuple_of(
    one_of("storage"),
    lambda value: isinstance(value, TracedName) and value.name.endswith("Storage"),
    is_text,
    is_text,
    is_integer,
    either(is_none, tuple_of(is_text, is_integer, is_integer)),
    optional=1,
)
_IN_PROTOCOL_0 = "('storage', "


def referenced(reference: Value) -> Value:
    """Return the value for a persistent id of torch; the id itself if its form is unknown.

    See torch/serialization.py `persistent_id` and `persistent_load`.
    """
    if _is_storage_reference(reference):
        return _STORAGE
    if type(reference) is str and (reference.isdigit() or reference.startswith(_IN_PROTOCOL_0)):
        return _REFERENCE
    if type(reference) is int:
        return _REFERENCE
    if type(reference) is tuple:
        saved = reference[1:] if reference[:1] == ("module",) else reference
        if saved[1:] and isinstance(saved[0], TracedName) and all(map(is_text, saved[1:])):
            return saved[0]  # a class, with its file and source text
    return PersistentId(reference)


# -- tensors: torch/_utils.py and torch/_tensor.py have functions of these names

_TENSOR = CallResult("tensor", "torch.Tensor")
_is_storage = made("storage", "reference")
_is_tensor = made("tensor", "reference")
_DTYPES = [f"torch.{name}" for name in dtypes.BY_TORCH]
_SCHEMES = [f"torch.per_{what}_affine" for what in ("tensor", "channel")]
_SCHEMES += [f"torch.per_{what}_symmetric" for what in ("tensor", "channel")]
_SCHEMES += ["torch.per_channel_affine_float_qparams"]
_LAYOUTS = "strided sparse_coo sparse_csr sparse_csc sparse_bsr sparse_bsc _mkldnn jagged"
_is_dtype = named(_DTYPES)
_is_hooks = either(is_none, is_mapping)
_is_metadata = either(is_none, is_items)
_is_device = either(is_text, made("device"))
_is_layout = made("layout")
_VIEW = (_is_storage, is_integer, is_integers, is_integers)
_is_quantizer = either(
    tuple_of(named(_SCHEMES), is_number, is_integer),
    tuple_of(named(_SCHEMES), _is_tensor, _is_tensor, is_integer),
)
_is_sparse = either(
    tuple_of(_is_tensor, _is_tensor, is_integers, is_flag, optional=1),
    tuple_of(_is_tensor, _is_tensor, _is_tensor, is_integers),
)


def _is_class(value: Value) -> bool:
    """Return whether it is a class for a tensor: a known one, or one that is reported."""
    return isinstance(value, TracedName) and (value.use is not None or value.name[:1].isupper())


_FROM_DEVICE = fixed(_TENSOR, made("tensor", "array"), _is_dtype, _is_device, is_flag)
_REBUILD: dict[str, Accept] = {
    "_rebuild_tensor": fixed(_TENSOR, *_VIEW),
    "_rebuild_tensor_v2": fixed(_TENSOR, *_VIEW, is_flag, _is_hooks, _is_metadata, optional=1),
    "_rebuild_tensor_v3": fixed(
        _TENSOR, *_VIEW, is_flag, _is_hooks, _is_dtype, _is_metadata, optional=1
    ),
    "_rebuild_parameter": fixed(_TENSOR, _is_tensor, is_flag, _is_hooks),
    "_rebuild_parameter_with_state": fixed(_TENSOR, _is_tensor, is_flag, _is_hooks, is_state),
    "_rebuild_qtensor": fixed(_TENSOR, *_VIEW, _is_quantizer, is_flag, _is_hooks),
    "_rebuild_sparse_tensor": fixed(_TENSOR, _is_layout, _is_sparse),
    "_rebuild_nested_tensor": fixed(_TENSOR, *[_is_tensor] * 4),
    "_rebuild_meta_tensor_no_storage": fixed(_TENSOR, _is_dtype, is_integers, is_integers, is_flag),
    "_rebuild_wrapper_subclass": fixed(
        _TENSOR,
        *(_is_class, _is_dtype, is_integers, is_integers, is_integer, _is_layout),
        *(_is_device, is_flag),
    ),
    "_rebuild_device_tensor_from_numpy": _FROM_DEVICE,
    "_rebuild_device_tensor_from_cpu_tensor": _FROM_DEVICE,
    "_rebuild_xla_tensor": _FROM_DEVICE,
}


def _from_type(args: tuple[Value, ...]) -> Value:
    """Accept a tensor of a subclass: a function above, the class, its arguments and a state."""
    if len(args) != len(("func", "type", "args", "state")):
        return None
    func, cls, inner, state = args
    if (
        not isinstance(func, TracedName)
        or func.module != "torch._utils"
        or func.name not in _REBUILD
    ):
        return None
    fits = _is_class(cls) and is_state(state) and type(inner) is tuple
    return _REBUILD[func.name](inner) if fits else None


# up to 0.3 the tensor is the argument or in the state, which `Tensor.__setstate__` still takes
_VARIABLE = Signature(
    fixed(
        CallResult(
            "tensor",
            "torch.nn.parameter.Parameter",
            state=either(
                tuple_of(is_flag, is_flag, _is_hooks),
                tuple_of(_is_tensor, is_data, is_data, is_data, _is_hooks),
            ),
        ),
        _is_tensor,
        is_flag,
        optional=2,
    ),
    _BOTH,
)
_TYPED = Signature(fixed(CallResult("tensor", "torch.Tensor", state=tuple_of(*_VIEW))), _BOTH)
_STORAGES = [row.storage for row in dtypes.TABLE if row.storage]
_PLACES = ("", "cuda.")
_KINDS = "BFloat16 Bool Byte Char Double Float Half Int Long Short"

_TORCH: dict[str, Signature] = {
    **{f"torch._utils.{name}": Signature(accept) for name, accept in _REBUILD.items()},
    "torch._tensor._rebuild_from_type": Signature(_from_type),
    "torch._tensor._rebuild_from_type_v2": Signature(_from_type),
    "torch.tensor._rebuild_from_type": Signature(_from_type),
    "torch.tensor._rebuild_from_type_v2": Signature(_from_type),
    "torch.autograd.variable.Variable": _VARIABLE,
    "torch.nn.parameter.Parameter": _VARIABLE,
    **{f"torch.{place}{name}Tensor": _TYPED for name in _STORAGES for place in _PLACES},
    "torch.Size": Signature(fixed(CallResult("size", "torch.Size"), is_integers)),
    "torch.device": Signature(
        fixed(CallResult("device", "torch.device"), is_text, is_integer, optional=1)
    ),
    "torch.serialization._get_layout": Signature(
        fixed(
            CallResult("layout", "torch.serialization._get_layout"),
            one_of(*(f"torch.{name}" for name in _LAYOUTS.split())),
        )
    ),
}
_ONLY_NAMED = (
    *_DTYPES,
    *_SCHEMES,
    *(f"torch.{sign}{bits}" for sign in ("int", "uint") for bits in range(1, 8)),
    *(f"torch.{place}{name}Storage" for name in _STORAGES for place in _PLACES),
    *(f"torch.{place}sparse.{kind}Tensor" for kind in _KINDS.split() for place in _PLACES),
    "torch.Tensor",
    "torch._tensor.Tensor",
    "torch.nn.parameter.Buffer",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
    "torch.distributed.tensor.DTensor",
    "torch.distributed.tensor.api.DTensor",
    "torch.distributed.tensor._api.DTensor",
    "torch.distributed._tensor.api.DTensor",
)


# -- distributed tensors and checkpoints: objects of dataclasses, made without arguments


def _object(name: str) -> Signature:
    return Signature(fixed(CallResult("object", name, state=is_state)), _NEW)


_META = Signature(fixed(_PLAIN, is_integers, is_integers, _is_dtype), _NEW)
_PLACEMENTS = "Partial _Partial Replicate Shard _StridedShard"
_OBJECTS = {
    "tensor.placement_types": _PLACEMENTS,
    "_tensor.placement_types": f"{_PLACEMENTS} DTensorSpec",
    "tensor._dtensor_spec": "DTensorSpec",
    "device_mesh": "DeviceMesh",
    "_mesh_layout": "_MeshLayout _FlatLayout",
    "checkpoint.metadata": "BytesStorageMetadata ChunkStorageMetadata Metadata MetadataIndex "
    "StorageMeta TensorStorageMetadata",
    "checkpoint.filesystem": "_StorageInfo",
}
_FORMATS = {  # modules with the properties of a tensor, and their enum of memory formats
    "checkpoint.metadata": "_MEM_FORMAT_ENCODING",
    "_shard.sharded_tensor.metadata": "MEM_FORMAT_ENCODING",
}
_PROPERTIES = CallResult(
    "object",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    state=tuple_of(_is_dtype, _is_layout, is_flag, made("memory format"), is_flag),
)
_DISTRIBUTED: dict[str, Signature] = {
    name: _object(name)
    for module, names in _OBJECTS.items()
    for name in (f"torch.distributed.{module}.{each}" for each in names.split())
}
_DISTRIBUTED |= {
    "torch.distributed.tensor._dtensor_spec.TensorMeta": _META,
    "torch.distributed._tensor.placement_types.TensorMeta": _META,
    "torch.distributed.tensor._dtensor_spec.ShardOrderEntry": Signature(
        fixed(_PLAIN, is_integer, is_integers), _NEW
    ),
    **{
        f"torch.distributed.{module}.TensorProperties": Signature(fixed(_PROPERTIES), _NEW)
        for module in _FORMATS
    },
    **{
        f"torch.distributed.{module}.{name}": Signature(
            fixed(CallResult("memory format", "enum.Enum"), one_of(0, 1, 2))
        )
        for module, name in _FORMATS.items()
    },
}
_PATHS = "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath"


def _path(args: tuple[Value, ...]) -> Value:
    return _PLAIN if all(type(part) is str for part in args) else None


# -- Python's containers and plain values

_RANGE = Signature(fixed(_PLAIN, *[either(is_none, is_integer)] * 3, optional=2))
_SET = Signature(fixed(_PLAIN, each_of(is_data), optional=1))
_TYPES = ("bool", "dict", "float", "int", "list", "long", "str", "tuple")
_FACTORIES = {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _TYPES}
_FACTORIES |= {"builtins.set", "__builtin__.set", "collections.OrderedDict"}
_BUILTINS: dict[str, Signature] = {
    "bytearray": Signature(first(is_bytes, one_of("latin-1", "latin1"), optional=1)),
    "bytes": Signature(first(is_bytes, optional=1)),
    "complex": Signature(fixed(_PLAIN, is_number, is_number)),
    "frozenset": _SET,
    "object": Signature(fixed(_PLAIN), _BOTH),
    "range": _RANGE,
    "set": _SET,
    "slice": _RANGE,
    "xrange": _RANGE,
    **dict.fromkeys(_TYPES, NEVER),
}


def _is_data_only(value: Value) -> bool:
    """Return whether it is a dict without functions."""
    return is_items(value) and all(is_data(part) for pair in value.items for part in pair)


_is_pair = either(each_of(is_data), lambda value: value is DROPPED)


def _open(name: str) -> Signature:
    """Return the signature of a class that only the user allows: any call is accepted."""
    made = CallResult("object", name, state=is_state_of_any, items=True, elements=True)
    return Signature(
        lambda _args: made, ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"), keywords=True
    )


def _is_open(value: Value) -> bool:
    """Return whether it is a class that only the user allows."""
    return isinstance(value, TracedName) and value.use is None and value.signature.keywords


def _reconstructed(args: tuple[Value, ...]) -> Value:
    """Accept an object of a user-allowed class, as protocols 0 and 1 write it."""
    fits = tuple_of(_is_open, named(["builtins.object", "__builtin__.object"]), is_none)(args)
    return args[0].signature.accept(()) if fits else None


_PYTHON: dict[str, Signature] = {
    "_codecs.encode": Signature(first(is_text, one_of("latin1"))),
    "_io.BytesIO": Signature(
        fixed(CallResult("buffer", "_io.BytesIO", state=tuple_of(is_bytes, is_integer, is_none))),
        _NEW,
    ),
    "collections.Counter": Signature(fixed(_PLAIN, _is_data_only, optional=1)),
    "collections.OrderedDict": Signature(
        fixed(
            CallResult(
                "OrderedDict", "collections.OrderedDict", state=is_state_of_dict, items=True
            ),
            either(_is_data_only, each_of(_is_pair)),
            optional=1,
        )
    ),
    "collections.defaultdict": Signature(
        fixed(
            CallResult("defaultdict", "collections.defaultdict", items=True),
            either(is_none, named(_FACTORIES), _is_open),
            optional=1,
        )
    ),
    **{f"builtins.{name}": signature for name, signature in _BUILTINS.items()},
    **{f"__builtin__.{name}": signature for name, signature in _BUILTINS.items()},
    **{f"{module}._reconstructor": Signature(_reconstructed) for module in ("copyreg", "copy_reg")},
    **{
        f"{module}.{name}": Signature(_path)
        for module in ("pathlib", "pathlib._local")
        for name in _PATHS.split()
    },
}

SIGNATURES: dict[str, Signature] = {
    **dict.fromkeys(_ONLY_NAMED, NEVER),
    **_TORCH,
    **_DISTRIBUTED,
    **NUMPY,
    **_PYTHON,
}

# what is allowed in a TorchScript archive only
_SCRIPT = Signature(fixed(CallResult("object", "__torch__.object", state=is_any)), _NEW)
_SCRIPT_HELPER = Signature(fixed(_PLAIN, is_any, is_text, optional=1))


def signature_of(module: str, name: str) -> Signature:
    """Return the permitted calls of an allowed name; any call if only the user allows it."""
    known = SIGNATURES.get(f"{module}.{name}") if "." not in name else None
    if known is not None:
        return known
    if module == "torch.jit._pickle":
        return _SCRIPT_HELPER
    return _SCRIPT if module.partition(".")[0] == "__torch__" else _open(f"{module}.{name}")

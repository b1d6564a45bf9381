"""Which part of a DTensor the process that saved it has, by the mesh and the placements.

torch/distributed/tensor/_utils.py `compute_local_shape_and_global_offset`. Objects are accepted in
the form in which torch 2.13 pickles them, and in no other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cgpt_convert.checkpoint import LocalPart
from cgpt_convert.pickles.flatten.children import of_state
from cgpt_convert.pickles.nodes import Call, Dict, Value

_DISTRIBUTED = "torch.distributed"
_PLACEMENTS = f"{_DISTRIBUTED}.tensor.placement_types"
_LAYOUTS = f"{_DISTRIBUTED}._mesh_layout"

Ints = tuple[int, ...]


def local_part(spec: Value, shape: Ints) -> LocalPart | None:
    """Return the part of a tensor of that shape; None if the DTensorSpec is not understood."""
    fields = _attributes(spec, f"{_DISTRIBUTED}.tensor._dtensor_spec", "DTensorSpec")
    mesh = _attributes(fields.get("mesh"), f"{_DISTRIBUTED}.device_mesh", "DeviceMesh")
    sizes, here = _mesh_sizes(mesh.get("_layout")), _integers(mesh.get("_coordinate_on_dim"))
    placements = fields.get("placements")
    if sizes is None or here is None or not isinstance(placements, tuple):
        return None
    if not len(sizes) == len(here) == len(placements):
        return None
    if any(at >= size for at, size in zip(here, sizes, strict=True)):
        return None
    dims = [_sharded(placement) for placement in placements]
    order = _order(dims, sizes)
    if order is None:
        return None
    start, local = [0] * len(shape), list(shape)
    for axis in order:
        dim, _ = dims[axis] or _NOT_UNDERSTOOD
        if not 0 <= dim < len(shape):
            return None
        each = -(-local[dim] // sizes[axis])  # as torch.chunk divides
        first = min(each * here[axis], local[dim])
        start[dim] += first
        local[dim] = min(each, local[dim] - first)
    return LocalPart(tuple(start), tuple(local))


def _attributes(value: Value, module: str, name: str) -> dict[str, Value]:
    """Return the attributes of an object of that class; none if it is anything else."""
    if not (isinstance(value, Call) and value.calls(module, name) and value.how == "NEWOBJ"):
        return {}
    if value.args != () or value.items or value.elements or not isinstance(value.state, Dict):
        return {}
    if value.state.changed > value.changed:  # after it was set
        return {}
    return {key: item for key, item in of_state(value.state) if type(key) is str}


def _mesh_sizes(layout: Value) -> Ints | None:
    """Return the number of processes along each dimension of the mesh; None if not known."""
    axes = _attributes(layout, _LAYOUTS, "_MeshLayout").get("axes")
    if not isinstance(axes, tuple):
        return None
    sizes: list[int] = []
    for axis in axes:
        shape = _integers(_attributes(axis, _LAYOUTS, "_FlatLayout").get("shape"))
        if shape is None or 0 in shape:
            return None
        sizes.append(math.prod(shape))  # one process has the shape ()
    return tuple(sizes)


def _integers(value: Value) -> Ints | None:
    """Return a tuple of integers that are not negative; None for anything else."""
    if isinstance(value, tuple) and all(type(each) is int and each >= 0 for each in value):
        return value
    return None


_NOT_UNDERSTOOD = (-1, 0)


def _sharded(placement: Value) -> tuple[int, int] | None:
    """Return the divided dimension and the split factor, 0 for an ordinary shard.

    None for a replica, a dimension of -1 for anything else.
    """
    if not isinstance(placement, Call):
        return _NOT_UNDERSTOOD
    if placement.calls(_PLACEMENTS, "Replicate"):
        return None if placement.how == "NEWOBJ" and placement.args == () else _NOT_UNDERSTOOD
    for name in ("Shard", "_StridedShard"):
        fields = _attributes(placement, _PLACEMENTS, name)
        dim, factor = fields.get("dim"), fields.get("split_factor", 0)
        if fields and type(dim) is int and type(factor) is int:
            return (dim, factor) if bool(factor) == (name != "Shard") else _NOT_UNDERSTOOD
    return _NOT_UNDERSTOOD


def _order(dims: Sequence[tuple[int, int] | None], sizes: Ints) -> list[int] | None:
    """Return the axes of the mesh in the order in which they divide; None if not understood.

    They divide from left to right, but a strided shard after the axes to its right that divide the
    same dimension, whose sizes are its split factor.
    """
    order: list[int] = []
    strided: list[int] = []
    for axis, sharded in enumerate(dims):
        if sharded is None:
            continue
        dim, factor = sharded
        later = [i for i, other in enumerate(dims) if i > axis and other and other[0] == dim]
        if factor and factor != math.prod(sizes[i] for i in later):
            return None
        (strided if factor else order).append(axis)
    return [*order, *reversed(strided)]

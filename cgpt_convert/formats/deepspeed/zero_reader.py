"""Reader for ZeRO checkpoints: the float32 weights of the optimizer, stages 1, 2 and 3.

The layout is that of DeepSpeed's zero_to_fp32.py. With stages 1 and 2, each group of parameters is
one vector, of which each rank has a part. With stage 3, each parameter is divided among the ranks,
and the parts of a rank are one behind the other. Shapes and order are in the model's file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from cgpt_convert.archives.zip_archive import open_archive
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core import limits
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.text import quoted
from cgpt_convert.formats.deepspeed.zero_names import LATEST, ZeroFiles, zero_files
from cgpt_convert.formats.read_checks import checked_nbytes
from cgpt_convert.formats.torch import zip_reader
from cgpt_convert.pickles.decode.decoder import decode
from cgpt_convert.pickles.flatten.children import children
from cgpt_convert.pickles.flatten.flatten import record_globals
from cgpt_convert.pickles.nodes import Value, text
from cgpt_convert.pickles.torch_calls.argument_checks import shape_of
from cgpt_convert.sources.local import read
from cgpt_convert.sources.paths import is_url, join, listing, open_source
from cgpt_convert.tensors.assembled import Box, assembled
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Tensor, replace

_TAG = re.compile(r"[^./\\\0][^/\\\0]*")
_OPTIMIZER = "optimizer_state_dict"
_GROUPS = {
    1: "single_partition_of_fp32_groups",
    2: "single_partition_of_fp32_groups",
    3: "fp32_flat_groups",
}
_FROZEN = "frozen_param_fragments"

Shapes = dict[str, tuple[int, ...]]


class _File(NamedTuple):
    """A file: its tensors, and the values of its outermost dict."""

    name: str
    checkpoint: Checkpoint
    values: Mapping[Value, Value]


class _Slice(NamedTuple):
    """Elements of a vector that one rank has, and where they belong in a parameter."""

    start: int
    flat: Tensor
    first: int
    numel: int
    file: str


def read_folder(path: str, inside: Collection[str], salvage: bool) -> Checkpoint:  # noqa: ARG001, FBT001
    """Read the checkpoint in the folder at `path`, or in that which its file `latest` names."""
    files = zero_files(inside)
    if not files.optimizer:
        path, files = _latest(path)
    if files.tensor_parallel:
        message = "the checkpoint has parts of tensor parallelism, which are not merged"
        raise Unsupported(message, where=path, hint="merge it with DeepSpeed's own script")
    if not files.optimizer or not files.model:
        raise Malformed("the folder has no model states and optimizer states", where=path)
    model = [_opened(path, name) for name in files.model]
    optimizer = [_opened(path, name) for name in files.optimizer]
    stage = _stage(optimizer, path)
    kind = f"DeepSpeed ZeRO-{stage} checkpoint, {len(optimizer)} ranks"
    merged = Checkpoint(path, kind, (), {})
    merged.sources = tuple(s for file in (*model, *optimizer) for s in file.checkpoint.sources)
    merged.tensors = _weights(model, optimizer, stage, path)
    merged.storages = [tensor.storage for tensor in merged.values()]
    names = dict.fromkeys(g for file in (*model, *optimizer) for g in file.checkpoint.globals)
    record_globals(merged, [(n.rpartition(".")[0], n.rpartition(".")[2]) for n in names])
    return merged


def _latest(path: str) -> tuple[str, ZeroFiles]:
    """Return the folder that `latest` names, and its files."""
    source = open_source(join(path, LATEST))
    data = read(source, 0, min(source.nbytes, limits.NAME_BYTES))
    tag = data.decode("utf-8", "replace").strip()
    if not _TAG.fullmatch(tag):
        raise Malformed(f"{LATEST} names no folder inside: {quoted(tag)}", where=path)
    folder = join(path, tag)
    if not is_url(path) and not os.path.isdir(folder):
        message = f"the folder {quoted(tag)} that {LATEST} names is missing"
        raise Malformed(message, where=path, hint="copy the folder, or pass another one")
    inside = listing(folder)
    if inside is None:
        raise Unsupported("the folder cannot be listed", where=folder, hint="download it")
    return folder, zero_files(inside)


def _opened(folder: str, name: str) -> _File:
    source = open_source(join(folder, name))
    archive = open_archive(source)
    pickle = f"{next(iter(archive.members), '').split('/')[0]}/data.pkl"
    if pickle not in archive.members:
        raise Malformed("the file is not one of torch", where=source.name)
    most = min(limits.PICKLE.nbytes, archive.members[pickle].nbytes)
    decoded = decode(archive.read(pickle, most))
    checkpoint = zip_reader.of_archive(archive, {pickle: decoded})
    return _File(name, checkpoint, _fields(decoded.value))


def _fields(value: Value) -> dict[str, Value]:
    """Return the items of a dict whose keys are text; none of anything else."""
    return {key: item for key, item in children(value) or () if type(key) is str}


def _stage(optimizer: Sequence[_File], where: str) -> int:
    """Return the stage; Malformed if there are not as many files as there were ranks."""
    fields = _fields(optimizer[0].values.get(_OPTIMIZER))
    stage, count = fields.get("zero_stage"), fields.get("partition_count")
    if type(stage) is not int or stage not in _GROUPS:
        raise Unsupported(f"the stage of ZeRO is {text(stage)}", where=where)
    counts = count if isinstance(count, list) else [count]
    if not counts or any(type(each) is not int for each in counts):
        raise Malformed(f"the number of ranks is {text(count)}", where=where)
    if max(counts) != len(optimizer):
        message = f"the folder has optimizer states of {len(optimizer)} of {max(counts)} ranks"
        raise Malformed(message, where=where, hint="copy the files of all ranks to one folder")
    return stage


def _weights(
    model: Sequence[_File], optimizer: Sequence[_File], stage: int, where: str
) -> dict[str, Tensor]:
    """Return buffers, frozen and trained parameters, then the shared ones, as the script does."""
    first = model[0]
    weights: dict[str, Tensor] = {}
    buffers = first.values.get("buffer_names")
    for name in buffers if isinstance(buffers, list) else ():
        tensor = first.checkpoint.get(f"module.{name}")
        if type(name) is str and tensor is not None:
            weights[name] = tensor.renamed(name)
    for name, shape in _shapes(first.values.get("frozen_param_shapes"), where).items():
        each = model if stage > 2 else model[:1]  # noqa: PLR2004  from 3 on they are divided
        flats = [(file, _of(file, f"{_FROZEN}.{name}")) for file in each]
        weights[name] = _assembled(name, shape, _in_turn(flats, math.prod(shape)), where)
    groups = first.values.get("param_shapes")
    if not isinstance(groups, list):
        raise Malformed(f"the shapes of the parameters are {text(groups)}", where=where)
    shapes = [_shapes(group, where) for group in groups]
    vectors = [_flats(file, stage) for file in optimizer]
    divided = _by_parameter if stage > 2 else _by_group  # noqa: PLR2004
    for name, slices, shape in divided(shapes, vectors, optimizer, where):
        weights[name] = _assembled(name, shape, slices, where)
    for name, kept in _fields(first.values.get("shared_params")).items():
        if type(kept) is str and kept in weights:
            weights[name] = weights[kept].renamed(name)
    return weights


def _shapes(value: Value, where: str) -> Shapes:
    shapes: Shapes = {}
    for name, size in _fields(value).items():
        shapes[name] = shape_of(size)
        checked_nbytes(shapes[name], 32, f"{where}[{name}]")
    return shapes


def _of(file: _File, name: str) -> Tensor:
    """Return a tensor of a file as a vector."""
    tensor = file.checkpoint.get(name)
    if tensor is None:
        raise Malformed(f"the tensor {quoted(name)} is missing", where=file.checkpoint.path)
    if not tensor.is_c_order:
        raise Unsupported(f"the vector {quoted(name)} is strided", where=file.checkpoint.path)
    return replace(tensor, shape=(tensor.numel,), strides=(1,))


def _flats(file: _File, stage: int) -> list[Tensor]:
    """Return the vectors of a rank, one for each group of parameters."""
    prefix = f"{_OPTIMIZER}.{_GROUPS[stage]}"
    count = sum(name.startswith(f"{prefix}.") for name in file.checkpoint)
    return [_of(file, f"{prefix}.{number}") for number in range(count)]


def _in_turn(flats: Sequence[tuple[_File, Tensor]], numel: int) -> list[_Slice]:
    """Return the first `numel` elements of vectors that follow each other."""
    slices, at = [], 0
    for file, flat in flats:
        size = min(flat.numel, numel - at)
        if size > 0:
            slices.append(_Slice(at, flat, 0, size, file.name))
        at += max(size, 0)
    return slices


_Parameter = tuple[str, list[_Slice], tuple[int, ...]]


def _by_group(
    shapes: Sequence[Shapes],
    vectors: Sequence[Sequence[Tensor]],
    files: Sequence[_File],
    where: str,
) -> Iterator[_Parameter]:
    """Yield the parameters of stages 1 and 2: a group is one vector, divided among the ranks."""
    if any(len(vector) != len(shapes) for vector in vectors):
        raise Malformed("the ranks do not have a vector for each group", where=where)
    for group, sizes in enumerate(shapes):
        flats = [vector[group] for vector in vectors]
        ends = list(accumulate((flat.numel for flat in flats), initial=0))
        at = 0
        for name, shape in sizes.items():
            end = at + math.prod(shape)
            slices = []
            for flat, (low, high), file in zip(flats, pairwise(ends), files, strict=True):
                first, last = max(at, low), min(end, high)
                if first < last:
                    part = _Slice(first - at, flat, first - low, last - first, file.name)
                    slices.append(part)
            yield name, slices, shape
            at = end
        _check_used(at, ends[-1], 2 * len(flats), where)


def _by_parameter(
    shapes: Sequence[Shapes],
    vectors: Sequence[Sequence[Tensor]],
    files: Sequence[_File],
    where: str,
) -> Iterator[_Parameter]:
    """Yield the parameters of stage 3: each is divided among the ranks, and padded."""
    at = 0
    for name, shape in (pair for sizes in shapes for pair in sizes.items()):
        numel = math.prod(shape)
        part = -(-numel // len(files))
        slices = []
        for rank, (vector, file) in enumerate(zip(vectors, files, strict=True)):
            left, low = min(part, numel - rank * part), 0
            for flat in vector:
                first, last = max(at, low), min(at + left, low + flat.numel)
                if first < last:
                    start = rank * part + first - at
                    slices.append(_Slice(start, flat, first - low, last - first, file.name))
                low += flat.numel
        yield name, slices, shape
        at += part
    for vector in vectors:
        _check_used(at, sum(flat.numel for flat in vector), 1, where)


def _check_used(used: int, there: int, align: int, where: str) -> None:
    """Raise Malformed unless the parameters take the whole vector, except for its padding."""
    if -(-used // align) != -(-there // align):
        message = f"the parameters have {used:,} elements, and the optimizer has {there:,}"
        raise Malformed(message, where=where)


def _assembled(name: str, shape: tuple[int, ...], slices: list[_Slice], where: str) -> Tensor:
    types = {each.flat.dtype for each in slices}
    if len(types) != 1:
        raise Malformed(f"no rank has {quoted(name)}, or in different types", where=where)
    boxes = [_box(each) for each in slices]
    vector = assembled(name, types.pop(), (math.prod(shape),), boxes, where)
    return replace(vector, shape=shape, strides=c_strides(shape))


def _box(part: _Slice) -> Box:
    flat = part.flat[part.first : part.first + part.numel]
    storage, width = flat.storage, flat.stored.nbytes
    offset = storage.offset + flat.start * width
    return Box(
        (part.start,),
        (part.numel,),
        f"{part.file}:{offset}",
        storage.source,
        (offset, part.numel * width),
        lambda: flat,
    )

"""Files of the ranks of a run, each with the part of every DTensor that its process had.

FSDP2 and verl save `model_world_size_8_rank_0.pt` and so on, without coordination. Each file has
the shape of the whole tensors, its place in the mesh and the placements, so that the parts can be
put together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from cgpt_convert.checkpoint import Checkpoint, MissingTensor
from cgpt_convert.core.errors import SALVAGE, BadRequest, Malformed, Unsupported
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.formats.read_checks import Unread, add_unread, each_read
from cgpt_convert.formats.registry import FormatFile
from cgpt_convert.formats.torch import torch_files
from cgpt_convert.pickles.flatten.flatten import record_globals
from cgpt_convert.sources.local import Source
from cgpt_convert.sources.paths import join, open_all
from cgpt_convert.tensors.assembled import Box, assembled
from cgpt_convert.tensors.tensor import Tensor

_MODEL = "model"  # what the names of the files with the weights begin with
_LOCAL, _SPEC = "._local_tensor", "._spec"
_SHOWN = 3


def read_ranks(path: str, inside: Collection[str], *, salvage: bool) -> Checkpoint:
    """Read the tensors that the files of the ranks in the folder at `path` make up.

    Raises Malformed, naming the ranks that are missing; with `salvage`, the tensors that need them
    are lost. BadRequest if there are several sets of files and none is of the model.
    """
    sets = torch_files.rank_files(inside)
    names = [name for name, _ in sets]
    chosen = [key for key in names if key == _MODEL] or names
    if len(chosen) > 1:
        raise BadRequest(
            f"the folder has files of ranks under several names: {', '.join(map(quoted, chosen))}",
            where=path,
            hint="move the files of each name to a folder of their own",
        )
    (files,) = (files for key, files in sets if key == chosen[0])
    there, missing = open_ranks(path, files, salvage=salvage)
    return _merged(path, read_each(there), there, missing)


def open_ranks(
    path: str, files: Sequence[str], *, salvage: bool
) -> tuple[dict[str, Source], list[str]]:
    """Open the files in the folder at `path`; also return the names of those that are missing.

    Raises Malformed, naming them, if some are missing; with `salvage`, if all are.
    """
    sources = open_all([join(path, file) for file in files])
    there: dict[str, Source] = {
        file: source for file, source in zip(files, sources, strict=True) if source is not None
    }
    missing = [file for file in files if file not in there]
    if missing and (not salvage or not there):
        raise Malformed(
            f"{len(missing)} of {len(files)} files of ranks are missing: "
            f"{quoted_list(missing, _SHOWN)}",
            where=path,
            hint=f"copy the files of all ranks to one folder, or {SALVAGE}",
        )
    return there, missing


def read_each(sources: Mapping[str, Source]) -> dict[str, Checkpoint]:
    """Return the checkpoint in each of the files of torch."""
    return {
        file: torch_files.read_file(FormatFile(source, source.name))
        for file, source in sources.items()
    }


def _merged(
    path: str, shards: dict[str, Checkpoint], sources: Mapping[str, Source], missing: list[str]
) -> Checkpoint:
    first = next(iter(shards.values()))
    merged = Checkpoint(path, f"{first.kind}, {len(shards) + len(missing)} ranks", (), {})
    merged.sources = tuple(sources.values())
    spread = [name for name, entry in first.exotic.items() if entry.kind == "DTensor"]
    tensors, unread = each_read(
        (name, functools.partial(_tensor, name, spread, shards, path))
        for name in _names(first, spread)
    )
    for name, error in unread.items():
        if not isinstance(error, Malformed):
            continue
        if not missing:
            raise error
        merged.lost[name] = MissingTensor(None, error.message)
    merged.tensors = tensors
    rest: Unread = {name: error for name, error in unread.items() if name not in merged.lost}
    add_unread(merged, rest)
    merged.exotic |= {name: e for name, e in first.exotic.items() if name not in spread}
    inner = tuple(f"{name}." for name in spread)
    merged.others = [o for o in first.others if not f"{o.path}.".startswith(inner or "\0")]
    merged.containers = {
        name: outer
        for name, outer in first.containers.items()
        if not f"{name}.".startswith(inner or "\0")
    }
    kept = {*merged.tensors, *merged.exotic, *merged.lost}
    merged.within = {name: outer for name, outer in first.within.items() if name in kept}
    merged.storages = [tensor.storage for tensor in merged.values()]
    add_globals(merged, shards.values())
    return merged


def add_globals(merged: Checkpoint, shards: Iterable[Checkpoint]) -> None:
    """Record the names that the pickles of the files refer to."""
    names = dict.fromkeys(name for shard in shards for name in shard.globals)
    record_globals(merged, [(n.rpartition(".")[0], n.rpartition(".")[2]) for n in names])


def _names(first: Checkpoint, spread: list[str]) -> Iterator[str]:
    """Yield the names of the tensors, in the order of the first file."""
    whole = {f"{name}{_LOCAL}": name for name in spread}
    inner = tuple(f"{name}{_SPEC}." for name in spread)
    for name in first:
        if name in whole:
            yield whole[name]
        elif not name.startswith(inner or "\0"):
            yield name


def _tensor(name: str, spread: list[str], shards: dict[str, Checkpoint], path: str) -> Tensor:
    """Return a tensor that the ranks have parts of, or that all of them have."""
    where = f"{path}[{name}]"
    if name not in spread:
        return next(iter(shards.values()))[name]
    boxes: dict[tuple[tuple[int, ...], tuple[int, ...]], Box] = {}
    shape: tuple[int, ...] | None = None
    dtype = None
    for file, shard in shards.items():
        entry, local = shard.exotic.get(name), shard.get(f"{name}{_LOCAL}")
        if entry is None or local is None:
            raise Malformed(f"the tensor is not in {quoted(file)}", where=where)
        part = entry.local
        if part is None:
            message = f"the placements in {quoted(file)} are not supported: {entry.detail}"
            raise Unsupported(message, where=where)
        if part.shape != local.shape:
            message = f"has {list(local.shape)}, and its placements give {list(part.shape)}"
            raise Malformed(f"the part in {quoted(file)} {message}", where=where)
        if (shape or entry.shape, dtype or local.dtype) != (entry.shape, local.dtype):
            raise Malformed("the ranks disagree about type or shape", where=where)
        shape, dtype = entry.shape, local.dtype
        box = box_of(part.start, local, file)
        boxes.setdefault((part.start, part.shape), box)  # a replica is taken from the first
    if shape is None or dtype is None:
        raise Malformed("no rank has it", where=where)
    return assembled(name, dtype, shape, [*boxes.values()], path)


def box_of(
    start: tuple[int, ...], tensor: Tensor, file: str, opened: Callable[[], Tensor] | None = None
) -> Box:
    """Return the box with the elements of `tensor`, which is in `file`.

    `opened` returns the same tensor and checks it when it is read.
    """
    storage = tensor.storage
    return Box(
        start,
        tensor.shape,
        f"{file}:{storage.offset + tensor.stored.size(tensor.start)}",
        storage.source,
        (storage.offset, storage.nbytes),
        opened or (lambda: tensor),
    )

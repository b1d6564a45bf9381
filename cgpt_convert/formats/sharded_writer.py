"""An output split into shards with an index, as huggingface_hub and transformers have it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from cgpt_convert.formats import write_checks as _planning
from cgpt_convert.plan import FilePlan, Request
from cgpt_convert.tensors.tensor import Tensor


def plan(
    request: Request,
    suffix: str,
    file: Callable[[str, list[Tensor], Request], FilePlan],
    indexed: Iterable[str] = (),
) -> list[FilePlan]:
    """The files: one called as the request says, or shards and their index if they are several.

    `file` plans one of them from its name, its tensors and the request. `indexed` are the aliases
    that the index is to list beside the tensors. A claim about all of them stands in the index.
    """
    base = os.path.basename(request.name)
    shards = _split(request.tensors, request.max_shard_nbytes)
    if len(shards) == 1:
        return [file(base, shards[0], request)]
    stem = base.removesuffix(suffix)
    count = len(shards)
    names = [f"{stem}-{i:05d}-of-{count:05d}{suffix}" for i in range(1, count + 1)]
    where = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
    where |= {alias: where[request.aliases[alias]] for alias in indexed}
    bare = replace(request, claim=None)
    files = [file(name, shard, bare) for name, shard in zip(names, shards, strict=True)]
    return [*files, _index(f"{stem}{suffix}.index.json", where, replace(request, metadata={}))]


def _split(tensors: Sequence[Tensor], most: int | None) -> list[list[Tensor]]:
    """The shards as huggingface_hub's `split_state_dict_into_shards_factory` makes them.

    A tensor that alone is too large becomes a shard at once, before the one being filled.
    """
    if most is None:
        return [list(tensors)]
    shards: list[list[Tensor]] = []
    current: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if tensor.nbytes > most:
            shards.append([tensor])
            continue
        if size + tensor.nbytes > most:
            shards.append(current)
            current, size = [], 0
        current.append(tensor)
        size += tensor.nbytes
    return [*shards, current] if current or not shards else shards


def _index(path: str, where: Mapping[str, str], request: Request) -> FilePlan:
    """The index as transformers' `save_pretrained` writes it; the size is of tensors only."""
    nbytes = sum(tensor.nbytes for tensor in request.tensors)

    def make(metadata: Mapping[str, str]) -> bytes:
        index = {"metadata": {"total_size": nbytes, **metadata}, "weight_map": where}
        return json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"

    return FilePlan(path, (_planning.with_metadata(request, make),))

"""Plans of sharded outputs with an index, as written by huggingface_hub and transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from cgpt_convert.formats import write_checks
from cgpt_convert.plan import FilePlan, Request
from cgpt_convert.tensors.tensor import Tensor


def plan(
    request: Request,
    suffix: str,
    file: Callable[[str, list[Tensor], Request], FilePlan],
    indexed: Iterable[str] = (),
) -> list[FilePlan]:
    """Plan one file named as in the request, or several shards and their index.

    `file` plans one of them from its name, its tensors and the request. `indexed` are the aliases
    that the index lists in addition to the tensors. Provenance metadata for all shards is in the
    index.
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
    """Split the tensors as huggingface_hub's `split_state_dict_into_shards_factory` does.

    A tensor that is larger than the limit becomes a shard at once, before the one being filled.
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
    """Plan the index as transformers' `save_pretrained` writes it; total_size excludes aliases."""
    nbytes = sum(tensor.nbytes for tensor in request.tensors)

    def make(metadata: Mapping[str, str]) -> bytes:
        index = {"metadata": {"total_size": nbytes, **metadata}, "weight_map": where}
        return json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"

    return FilePlan(path, (write_checks.with_metadata(request, make),))

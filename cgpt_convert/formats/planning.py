"""The parts of planning that formats share: checks of the request, metadata, shards, index."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from cgpt_convert.core.errors import BadRequest, Unsupported
from cgpt_convert.core.file_names import excluding
from cgpt_convert.core.text import printable
from cgpt_convert.plan import NO_DIGESTS, AvailableDigests, DeferredPart, FilePlan, Request
from cgpt_convert.tensors.tensor import Tensor


def check(
    request: Request, kind: str, holds: Callable[[Tensor], bool], *, splits: bool = False
) -> None:
    """Raise Unsupported, naming every tensor at fault, unless `kind` can store the request.

    `holds` returns whether a tensor's element type and shape can be stored; `splits` is whether the
    format supports `max_shard_nbytes`.
    """
    counts = Counter(tensor.name for tensor in request.tensors)
    refuse(request, "names given to more than one tensor", (n for n in counts if counts[n] > 1))
    everything = (*counts, *request.aliases)
    refuse(request, "names that are not Unicode text", filter(has_surrogates, everything))
    refuse(request, "aliases that are tensors, too", (n for n in request.aliases if n in counts))
    lost = (f"{name} -> {kept}" for name, kept in request.aliases.items() if kept not in counts)
    refuse(request, "aliases of tensors that are not written", lost)
    misfits = [tensor for tensor in request.tensors if not holds(tensor)]
    if misfits:
        refuse(
            request,
            f"tensors of types that {kind} cannot hold",
            (f"{tensor.name} ({tensor.dtype.name})" for tensor in misfits),
            f"Use {excluding([tensor.name for tensor in misfits])} to skip them.",
        )
    if request.max_shard_nbytes is not None:
        _check_splitting(request, kind, splits=splits)


def late(
    request: Request, make: Callable[[AvailableDigests, Mapping[str, str]], bytes]
) -> DeferredPart:
    """Return a deferred part: `make` computes it from the digests and the request's metadata."""
    claim = request.claim

    def made(digests: AvailableDigests) -> bytes:
        more = claim.metadata(digests.tensors) if claim else {}
        return make(digests, request.metadata | more)

    return DeferredPart(len(made(NO_DIGESTS)), made, claim.tensors if claim else ())


def with_metadata(
    request: Request, make: Callable[[Mapping[str, str]], bytes]
) -> bytes | DeferredPart:
    """Return the result of `make` for the request's metadata; late if it includes a claim."""
    if request.claim is None:
        return make(request.metadata)
    return late(request, lambda _digests, metadata: make(metadata))


def refuse(request: Request, what: str, culprits: Iterable[str], hint: str = "") -> None:
    """Raise Unsupported listing all `culprits`, if there are any."""
    names = list(culprits)
    if names:
        raise Unsupported(
            f"{what}: {', '.join(map(printable, names))}", where=request.name, hint=hint
        )


def _check_splitting(request: Request, kind: str, *, splits: bool) -> None:
    if not splits:
        raise BadRequest(f"{kind} is not split into shards", where=request.name)
    if request.max_shard_nbytes is not None and request.max_shard_nbytes < 1:
        raise BadRequest("a shard has at least one byte", where=request.name)


def has_surrogates(name: str) -> bool:
    """Return whether the name contains lone surrogates, as names in pickles may."""
    return any("\ud800" <= char <= "\udfff" for char in name)


def plan_shards(
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

    return FilePlan(path, (with_metadata(request, make),))

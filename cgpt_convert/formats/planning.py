"""The parts of planning that formats share: checks of the request, metadata, shards, index."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from cgpt_convert.core.errors import BadRequest, Unsupported
from cgpt_convert.core.file_names import excluding
from cgpt_convert.core.text import quoted
from cgpt_convert.plan import NO_DIGESTS, AvailableDigests, DeferredPart, FilePlan, Request
from cgpt_convert.tensors.tensor import Tensor


def check(
    request: Request, kind: str, holds: Callable[[Tensor], bool], *, splits: bool = False
) -> None:
    """Raise Unsupported, naming every tensor concerned, unless `kind` can store the request.

    `holds` returns whether a tensor's element type and shape can be stored; `splits` is whether the
    format supports `max_shard_nbytes`.
    """
    counts = Counter(tensor.name for tensor in request.tensors)
    repeated = (quoted(name) for name in counts if counts[name] > 1)
    refuse(request, "several tensors have the same name", repeated)
    check_unicode(request, (*counts, *request.aliases))
    taken = (quoted(name) for name in request.aliases if name in counts)
    refuse(request, "aliases have the names of tensors", taken)
    dangling = (
        f"{quoted(name)} -> {quoted(kept)}"
        for name, kept in request.aliases.items()
        if kept not in counts
    )
    refuse(request, "aliases refer to tensors that are not written", dangling)
    misfits = [tensor for tensor in request.tensors if not holds(tensor)]
    if misfits:
        refuse(
            request,
            f"{kind} cannot store tensors of these types",
            (f"{quoted(tensor.name)} ({tensor.dtype.name})" for tensor in misfits),
            f"use {excluding([tensor.name for tensor in misfits])} to skip them",
        )
    if request.max_shard_nbytes is not None:
        _check_splitting(request, kind, splits=splits)


def check_unicode(request: Request, names: Iterable[str]) -> None:
    """Raise Unsupported for names with lone surrogates, which names in pickles may contain."""
    refuse(request, "names are not valid Unicode", map(quoted, filter(_has_surrogates, names)))


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
    """Return the result of `make` for the metadata; deferred if it includes provenance."""
    if request.claim is None:
        return make(request.metadata)
    return late(request, lambda _digests, metadata: make(metadata))


def refuse(request: Request, what: str, culprits: Iterable[str], hint: str = "") -> None:
    """Raise Unsupported listing all `culprits`, printable texts, if there are any."""
    texts = list(culprits)
    if texts:
        raise Unsupported(f"{what}: {', '.join(texts)}", where=request.name, hint=hint)


def _check_splitting(request: Request, kind: str, *, splits: bool) -> None:
    if not splits:
        hint = "omit --max-shard-size, or use --to safetensors or --to torch"
        message = f"{kind} files cannot be split into shards"
        raise BadRequest(message, where=request.name, hint=hint)
    if request.max_shard_nbytes is not None and request.max_shard_nbytes < 1:
        raise BadRequest("the shard size is less than 1 byte", where=request.name)


def _has_surrogates(name: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in name)


def plan_shards(
    request: Request,
    suffix: str,
    file: Callable[[str, list[Tensor], Request], FilePlan],
    indexed: Iterable[str] = (),
) -> list[FilePlan]:
    """Plan one file named as in the request, or several shards and their index.

    `file` plans one file from its name, its tensors and the request. `indexed` are the aliases
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

    A tensor that is larger than the limit becomes a shard immediately, before the current shard.
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

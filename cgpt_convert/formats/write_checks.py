"""Checks of a request that every format makes before planning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from cgpt_convert.core.errors import BadRequest, Unsupported
from cgpt_convert.core.file_names import excluding
from cgpt_convert.core.text import printable
from cgpt_convert.plan import NO_DIGESTS, AvailableDigests, DeferredPart, Request
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
    found = list(culprits)
    if found:
        raise Unsupported(
            f"{what}: {', '.join(map(printable, found))}", where=request.name, hint=hint
        )


def _check_splitting(request: Request, kind: str, *, splits: bool) -> None:
    if not splits:
        raise BadRequest(f"{kind} is not split into shards", where=request.name)
    if request.max_shard_nbytes is not None and request.max_shard_nbytes < 1:
        raise BadRequest("a shard has at least one byte", where=request.name)


def has_surrogates(name: str) -> bool:
    """Return whether the name contains lone surrogates, as names in pickles may."""
    return any("\ud800" <= char <= "\udfff" for char in name)

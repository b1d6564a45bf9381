"""Digests of weights: of each tensor, of all tensors, and of the model; digests of files."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cgpt_convert.checkpoint import CompositeTensor
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.text import printable
from cgpt_convert.core.threads import Advance, WorkerPool, untold, worker_count
from cgpt_convert.sources.local import CHUNK, Source
from cgpt_convert.tensors import read
from cgpt_convert.tensors.assembled import boxes_of
from cgpt_convert.tensors.content_digest import listed
from cgpt_convert.tensors.tensor import Content, Tensor, announce
from cgpt_convert.verification.canonical_names import AMBIGUOUS, LOST, CanonicalWeights
from cgpt_convert.writing.tensor_stream import TensorPieces, in_turn


def is_unknown(exotic: CompositeTensor) -> bool:
    """Return whether the tensor's value is unknown: unreadable or ambiguous."""
    return exotic.error is not None or exotic.kind in (LOST, AMBIGUOUS)


def parts(weights: CanonicalWeights, names: Iterable[str] | None = None) -> Iterator[Tensor]:
    """Yield the dense components of composite tensors: of all, or of those in `names`."""
    for name in weights.odd if names is None else names:
        yield from weights.odd[name].parts


def digest(exotic: CompositeTensor, digests: Mapping[Content, str]) -> str:
    """Return the digest of a composite tensor, given those of its components."""
    import hashlib

    lines = [f"{exotic.kind} {exotic.dtype} {'x'.join(map(str, exotic.shape))}", exotic.detail]
    lines += [digests[part.content] for part in exotic.parts]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def reject_unknown(weights: CanonicalWeights, doing: str) -> None:
    """Raise Unsupported, naming them, if the values of some tensors are unknown."""
    unknown = [each for each in weights.odd.values() if is_unknown(each)]
    if unknown:
        listed = "; ".join(f"{printable(each.name)}: {each.detail}" for each in unknown)
        raise Unsupported(
            f"{doing}: {listed}", where=weights.path, hint="skip these tensors with --exclude"
        )


def described(weights: CanonicalWeights, name: str) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of a tensor, composite or dense."""
    odd = weights.odd.get(name)
    tensor = weights.tensors.get(name)
    return (
        (odd.dtype, odd.shape) if odd else (tensor.dtype.name, tensor.shape) if tensor else ("", ())
    )


ALGORITHM = "sha256:"  # prefix of digests of all tensors


class TensorDigests(NamedTuple):
    """Digests in hex: of the tensors by name, of all of them, and of the model or "".

    docs/reference/digest.md defines them.
    """

    tensors: dict[str, str]
    whole: str
    model: str


def digested(weights: CanonicalWeights, jobs: int = 0, advance: Advance = untold) -> TensorDigests:
    """Return the digests of all tensors, computed by `jobs` threads; 0 is one per CPU core.

    Raises Malformed if data does not match the checksum in the source.
    """
    reject_unknown(weights, "the digest cannot be computed")
    digests = hashed([*weights.tensors.values(), *parts(weights)], jobs, advance)
    tensors = _by_name(weights, weights.keys, digests)
    return TensorDigests(tensors, listed(tensors), model_digest(weights, tensors))


def hashed_nbytes(weights: CanonicalWeights) -> int:
    """Return the number of bytes that `digested` reads: content with several names once."""
    each = {t.content: t for t in (*weights.tensors.values(), *parts(weights))}
    return sum(tensor.nbytes for tensor in each.values())


def of_part(part: CanonicalWeights, whole: TensorDigests) -> TensorDigests:
    """Return the digests of a part of weights whose digests are known."""
    tensors = {name: whole.tensors[part.full_name(name)] for name in part.keys}
    return TensorDigests(tensors, listed(tensors), model_digest(part, tensors))


def prefixed(digest: str) -> str:
    """Return the digest with the name of its algorithm; "" if there is none."""
    return ALGORITHM + digest if digest else ""


def _by_name(
    weights: CanonicalWeights, names: Iterable[str], digests: Mapping[Content, str]
) -> dict[str, str]:
    return {
        name: digest(weights.odd[name], digests)
        if name in weights.odd
        else digests[weights.tensors[name].content]
        for name in names
    }


def model_digest(weights: CanonicalWeights, tensors: Mapping[str, str]) -> str:
    """Return the digest of the model from its tensors' digests by name; "" if not a model."""
    if not weights.is_model:
        return ""
    keyed = {
        weights.keys[name]: digest
        for name, digest in tensors.items()
        if name not in weights.buffers
    }
    for key, twin in weights.ties.items():
        if key in keyed and keyed[key] == keyed.get(twin):
            del keyed[key]
    return listed(keyed, f"model 1 {weights.architecture}")


def hashed(
    tensors: Iterable[Tensor], jobs: int = 0, advance: Advance = untold
) -> dict[Content, str]:
    """Return content -> digest. Content with several names is read once."""
    each = {tensor.content: tensor for tensor in tensors}
    workers = WorkerPool(worker_count(jobs), advance)
    pieces = TensorPieces(workers, wanted=each)

    def hash_one(tensor: Tensor) -> None:
        for piece in pieces.of(tensor):
            workers.advance(len(piece))

    by_size = sorted(each.values(), key=lambda tensor: -tensor.nbytes)
    announce(by_size)
    work = in_turn((tensor, functools.partial(hash_one, tensor)) for tensor in _dealt(by_size))
    workers.run(work, prepare=functools.partial(prepare_for, list(each.values())))
    for source in {id(t.storage.source): t.storage.source for t in each.values()}.values():
        source.check_unchanged()
    return pieces.digests


def digests_of(
    weights: CanonicalWeights, names: Iterable[str], jobs: int = 0, advance: Advance = untold
) -> dict[str, str]:
    """Return the digests of some of the tensors, by name."""
    names = [*names]
    dense = [weights.tensors[name] for name in names if name in weights.tensors]
    strange = [name for name in names if name in weights.odd]
    digests = hashed([*dense, *parts(weights, strange)], jobs, advance)
    return _by_name(weights, names, digests)


def _dealt(by_size: list[Tensor]) -> list[Tensor]:
    """Order tensors from large to small at both ends, since threads start from both ends."""
    return by_size[::2] + by_size[1::2][::-1]


def is_digest(text: str) -> bool:
    """Return whether the text is a SHA-256 in lower-case hex."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def prepare_for(tensors: Iterable[Tensor] = ()) -> None:
    """Import the modules that threads need to hash and read these tensors."""
    importlib.import_module("hashlib")
    if any(tensor.extent() is None or boxes_of(tensor.storage) for tensor in tensors):
        read.import_all()


def file_digests(
    sources: Iterable[Source], jobs: int = 0, advance: Advance = untold
) -> dict[str, str]:
    """Return the SHA-256 of each file in hex, by source name; computed by `jobs` threads."""
    each = {source.name: source for source in sources}
    digests: dict[str, str] = {}
    workers = WorkerPool(worker_count(jobs), advance)

    def hash_one(source: Source) -> None:
        workers.wait_prepared()
        import hashlib

        digest = hashlib.sha256()
        for piece in _chunks(source):
            workers.go_on()
            digest.update(piece)
            workers.advance(len(piece))
        source.check_unchanged()
        digests[source.name] = digest.hexdigest()

    workers.run([functools.partial(hash_one, s) for s in each.values()], prepare=prepare_for)
    return {name: digests[name] for name in each}


def same_bytes(one: Sequence[Source], other: Sequence[Source], jobs: int = 0) -> bool:
    """Return whether both lists of files have the same bytes, in the same order."""
    if [source.nbytes for source in one] != [source.nbytes for source in other]:
        return False
    digests = [[*file_digests(files, jobs).values()] for files in (one, other)]
    return digests[0] == digests[1]


def _chunks(source: Source) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(CHUNK, source.nbytes)))
    for start in range(0, source.nbytes, CHUNK):
        piece = buffer[: min(CHUNK, source.nbytes - start)]
        source.readinto(start, piece)
        yield piece

"""Digests of tensors that are not one dense view (sparse, nested, packed ...).

docs/reference/digest.md defines the digest, computed from the description and from the dense
components.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cgpt_convert.checkpoint import CompositeTensor
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.text import printable
from cgpt_convert.tensors.tensor import Content, Tensor
from cgpt_convert.verification.canonical_names import AMBIGUOUS, LOST, CanonicalWeights


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

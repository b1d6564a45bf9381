"""`digest`, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from cgpt_convert.api.arguments import Globs, Source, opened, patterns
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.core.text import counted
from cgpt_convert.core.threads import Progress, no_progress
from cgpt_convert.targets.selection import TensorSelection
from cgpt_convert.verification.canonical_names import converted_part, weights
from cgpt_convert.verification.digests import (
    ALGORITHM,
    described,
    digested,
    hashed_nbytes,
    of_part,
    prefixed,
)
from cgpt_convert.verification.scope import Scope, part_scope


class DigestedTensor(NamedTuple):
    """A tensor's digest in hex, and its type and shape; "" and () if unknown."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


class DigestedPart(NamedTuple):
    """The tensors that `convert` writes, where the checkpoint contains more."""

    root: str  # the key that contains them; "" for none
    digest: str
    tensors: int


@dataclass(frozen=True, slots=True, repr=False)
class Digests:
    """The digests of weights, as `sha256:` and hex; docs/reference/digest.md defines them.

    `model` is "" unless the weights are a complete model of a known architecture.
    """

    source: str
    digest: str
    part: DigestedPart | None  # None if `convert` writes all tensors, or if ambiguous
    ambiguity: str  # why the tensors that `convert` writes are ambiguous; "" if not
    model: str
    architecture: str
    misfits: tuple[str, ...]  # differences from a complete model of the architecture
    tensors: dict[str, DigestedTensor]
    scope: Scope

    def __repr__(self) -> str:
        count = counted(len(self.tensors), "tensor")
        return f"<Digests of {self.source!r}: {self.digest}, {count}>"

    @property
    def weights(self) -> str:
        """The digest of the tensors that `convert` writes; "" if ambiguous."""
        if self.part is not None:
            return self.part.digest
        return "" if self.ambiguity else self.digest

    @property
    def root(self) -> str:
        """The key that contains `weights`; "" for none."""
        return self.scope.root if self.part is None else self.part.root

    def to_dict(self) -> dict[str, Any]:
        """Return the output of `digest --json`; docs/reference/json.md lists the keys."""
        return {
            "source": self.source,
            "digest": self.digest,
            "weights": self.part
            and {
                "root": self.part.root or None,
                "digest": self.part.digest,
                "tensors": self.part.tensors,
                "of": len(self.tensors),
            },
            "model": self.model or None,
            "architecture": self.architecture or None,
            "tensors": [
                {"name": name, **tensor._asdict(), "shape": list(tensor.shape)}
                for name, tensor in self.tensors.items()
            ],
            "scope": self.scope.to_dict(),
        }


def digest(
    source: Source,
    *,
    root: str | None = None,
    match: Globs = (),
    exclude: Globs = (),
    mapping: str | None = None,
    jobs: int = 0,
    progress: Progress = no_progress,
) -> Digests:
    """Read the tensors and return their digests, which are the same in every format."""
    checkpoint = opened(source, mapping)
    wish = TensorSelection(root, patterns(match), patterns(exclude))
    chosen = weights(checkpoint, wish)
    with progress("hashing", hashed_nbytes(chosen)) as advance:
        digests = digested(chosen, jobs, advance)
    part, ambiguity = chosen, ""
    try:
        part = converted_part(checkpoint, chosen, wish)
    except BadRequest as error:  # several keys may contain the weights
        ambiguity = error.message
    inside = of_part(part, digests) if part is not chosen else digests
    return Digests(
        source=chosen.path,
        digest=ALGORITHM + digests.whole,
        part=DigestedPart(part.root, ALGORITHM + inside.whole, len(part.keys))
        if part is not chosen
        else None,
        ambiguity=ambiguity,
        model=prefixed(inside.model),
        architecture=part.architecture,
        misfits=part.misfits,
        tensors={
            name: DigestedTensor(*described(chosen, name), digests.tensors[name])
            for name in chosen.keys
        },
        scope=part_scope(chosen, wish),
    )

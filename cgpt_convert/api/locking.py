"""`lock`, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cgpt_convert.api.arguments import Globs, Path, Source, opened, output_path, patterns
from cgpt_convert.core.text import counted
from cgpt_convert.core.threads import Progress, no_progress
from cgpt_convert.targets.selection import TensorSelection
from cgpt_convert.verification import lock_file
from cgpt_convert.verification.canonical_names import weights
from cgpt_convert.verification.digests import ALGORITHM, digested, hashed_nbytes, prefixed
from cgpt_convert.verification.lock_file import LockedFile, LockedTensor
from cgpt_convert.verification.scope import Scope, part_scope
from cgpt_convert.writing.output_checks import check_apart, inputs_of
from cgpt_convert.writing.writer import WriteOptions


@dataclass(frozen=True, slots=True, repr=False)
class Locked:
    """The content of a lock that was written. Digests are those of `digest`."""

    source: str
    path: str  # of the lock
    digest: str
    model: str
    architecture: str
    files: tuple[LockedFile, ...]  # the files of the source
    tensors: dict[str, LockedTensor]
    scope: Scope

    def __repr__(self) -> str:
        count = counted(len(self.tensors), "tensor")
        return f"<Locked {self.path!r}: {count} of {self.source!r}, {self.digest}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the output of `lock --json`; docs/reference/json.md lists the keys."""
        return {
            "source": self.source,
            "output": self.path,
            "digest": self.digest,
            "model": self.model or None,
            "tensors": len(self.tensors),
            "scope": self.scope.to_dict(),
        }


def lock(
    source: Source,
    output: Path,
    *,
    root: str | None = None,
    match: Globs = (),
    exclude: Globs = (),
    in_toto: bool = False,
    overwrite: bool = False,
    mapping: str | None = None,
    jobs: int = 0,
    progress: Progress = no_progress,
) -> Locked:
    """Write the digests of all tensors to the file `output`, for `verify`.

    With `in_toto`, the lock is written as an in-toto statement. Raises BadRequest if the output
    would replace a file of the source, and CannotWrite if it exists and `overwrite` is false.
    """
    path = output_path(output)
    checkpoint = opened(source, mapping)
    inputs = inputs_of(checkpoint)
    check_apart((), inputs, [path], folder=False)
    wish = TensorSelection(root, patterns(match), patterns(exclude))
    chosen = weights(checkpoint, wish)
    with progress("hashing", hashed_nbytes(chosen)) as advance:
        digests = digested(chosen, jobs, advance)
    scope = wish._replace(root=chosen.root or None)
    made = lock_file.lock(checkpoint, chosen, digests, scope, jobs)
    lock_file.write(made, path, WriteOptions(overwrite, inputs), in_toto=in_toto)
    return Locked(
        source=checkpoint.opened_as,
        path=path,
        digest=ALGORITHM + made.digest,
        model=prefixed(made.model),
        architecture=made.architecture,
        files=made.files,
        tensors=made.tensors,
        scope=part_scope(chosen, wish),
    )

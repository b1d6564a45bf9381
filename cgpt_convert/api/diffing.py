"""`diff`, and its result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cgpt_convert.api.arguments import Globs, Source, opened, patterns
from cgpt_convert.core.text import counted
from cgpt_convert.core.threads import Progress, no_progress
from cgpt_convert.targets.selection import TensorSelection
from cgpt_convert.verification import tensor_differences
from cgpt_convert.verification.scope import Scope, sides
from cgpt_convert.verification.tensor_differences import NOT_COMPARED, TensorDifference


@dataclass(frozen=True, slots=True, repr=False)
class Difference:
    """The rows of `diff`, one per tensor. Its truth value is false if `equal` is true."""

    before: str
    after: str
    rows: tuple[TensorDifference, ...]
    scope: Scope

    def __repr__(self) -> str:
        count = counted(len(self.rows), "tensor")
        text = f"{sum(row.differs for row in self.rows):,} of {count} differ"
        if not self.differs:
            text = f"{count}, equal" if self.equal else f"{count}, not all compared"
        return f"<Difference of {self.before!r} and {self.after!r}: {text}>"

    @property
    def differs(self) -> bool:
        """Whether a tensor differs."""
        return any(row.differs for row in self.rows)

    @property
    def equal(self) -> bool:
        """Whether no tensor differs and every tensor in the scope was compared."""
        return not self.differs and not any(
            row.state == NOT_COMPARED and row.unknown for row in self.rows
        )

    def __bool__(self) -> bool:
        return not self.equal

    def to_dict(self) -> dict[str, Any]:
        """Return the output of `diff --json`; docs/reference/json.md lists the keys."""
        return {
            "before": self.before,
            "after": self.after,
            "equal": self.equal,
            "scope": self.scope.to_dict(),
            "tensors": [_row(row) for row in self.rows],
        }


def _row(row: TensorDifference) -> dict[str, Any]:
    """Return a row for JSON; a value that is not finite becomes None."""
    fields = row._asdict()
    del fields["unknown"]
    fields["dtypes"] = list(row.dtypes)
    fields["shapes"] = [list(shape) for shape in row.shapes]
    most = row.most
    fields["most"] = most if most is not None and math.isfinite(most) else None
    return fields


def diff(
    before: Source,
    after: Source,
    *,
    root: str | None = None,
    match: Globs = (),
    exclude: Globs = (),
    jobs: int = 0,
    progress: Progress = no_progress,
) -> Difference:
    """Compare two checkpoints; return which tensors differ, and by how much."""
    wish = TensorSelection(root, patterns(match), patterns(exclude))
    one, other = opened(before), opened(after)
    both = sides(one, other, wish)
    with progress("comparing", sum(t.nbytes for t in both.other.tensors.values())) as advance:
        rows = tensor_differences.diff(both, jobs, advance)
    return Difference(one.opened_as, other.opened_as, tuple(rows), both.scope)

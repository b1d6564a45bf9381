"""`verify`, and its result."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cgpt_convert.api.arguments import Globs, NameRules, Path, Source, opened, patterns, rules
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.checks import NOTE, Check, exit_code
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.core.text import counted
from cgpt_convert.core.threads import Progress, no_progress
from cgpt_convert.scanning.allowlist import Allowlist
from cgpt_convert.targets.selection import TensorSelection
from cgpt_convert.verification.check_extras import extra_checks, of_source
from cgpt_convert.verification.scope import Scope
from cgpt_convert.verification.verify_files import (
    against_itself,
    against_lock_file,
    against_original,
)


@dataclass(frozen=True, slots=True, repr=False)
class Verified:
    """The checks of `verify`. Its truth value is `ok`.

    `scope` describes which tensors were compared; it is None if a file was compared with its own
    provenance metadata, which covers the whole file.
    """

    checks: tuple[Check, ...]
    scope: Scope | None

    def __repr__(self) -> str:
        made = counted(sum(check.outcome != NOTE for check in self.checks), "check")
        text = f"ok, {made}" if self.ok else f"{len(self.failed):,} of {made} failed"
        return f"<Verified: {text}>"

    @property
    def ok(self) -> bool:
        """Whether every check was made and passed."""
        return exit_code(self.checks) == 0

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass, without the notes."""
        return tuple(check for check in self.checks if exit_code([check]))

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Return the output of `verify --json` without `logits`; see docs/reference/json.md."""
        return {
            "ok": self.ok,
            "outcomes": dict(Counter(check.outcome for check in self.checks)),
            "checks": [check._asdict() for check in self.checks],
            "scope": self.scope and self.scope.to_dict(),
        }


def verify(
    source: Source,
    target: Source | None = None,
    *,
    lock: Path | None = None,
    root: str | None = None,
    match: Globs = (),
    exclude: Globs = (),
    rename: NameRules = (),
    allow: Sequence[str] = (),
    mapping: str | None = None,
    jobs: int = 0,
    progress: Progress = no_progress,
) -> Verified:
    """Compare `target` with `source`, bit for bit; casts are recomputed from the source.

    With one argument, it is compared with `lock`, the path of a lock, or else with its own
    provenance metadata. The check also fails if the compared file references code, or if a folder
    was opened that contains other weight files; `allow` lists classes that are allowed. `rename`
    has the rules with which `convert` renamed the tensors of `source`.
    """
    wish = TensorSelection(root, patterns(match), patterns(exclude), rename=rules(rename))
    rule = Allowlist(tuple(allow))
    original: Checkpoint | None = None
    scope: Scope | None = None
    if target is not None:
        if lock is not None:
            raise BadRequest("target and lock cannot be combined", hint="pass only one of them")
        original, compared = opened(source, mapping), opened(target)
        checks, scope = against_original(original, compared, wish, jobs, progress)
        checks += of_source(original, original.opened_as)
    elif lock is not None:
        if wish.rename:
            raise BadRequest("rename and lock cannot be combined", hint="pass source and target")
        compared = opened(source, mapping)
        checks, scope = against_lock_file(compared, os.fspath(lock), wish, jobs, progress)
    elif wish != TensorSelection() or mapping is not None:
        raise BadRequest(
            "root, match, exclude, rename and mapping cannot be used when verifying a file alone",
            hint="also pass a target or a lock",
        )
    else:
        compared = opened(source)
        checks = against_itself(compared, jobs, progress)
    checks += extra_checks(compared, compared.opened_as, rule, original)
    if scope is not None:
        checks += scope.checks()
    return Verified(tuple(checks), scope)

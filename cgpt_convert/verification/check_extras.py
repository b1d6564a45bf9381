"""Contents of TARGET other than the compared tensors: code its pickles reference, other weights."""

from __future__ import annotations

from collections.abc import Iterator

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.checks import FAILED, NOTE, Check
from cgpt_convert.core.findings import DANGEROUS, FOREIGN, LONE_SHARD
from cgpt_convert.core.text import printable
from cgpt_convert.formats.open import other_weights, weights_below
from cgpt_convert.pickles.torch_calls.dangerous import is_dangerous_path
from cgpt_convert.scanning.allowlist import Allowlist
from cgpt_convert.verification.digests import same_bytes
from cgpt_convert.verification.scope import listed


def extra_checks(
    checkpoint: Checkpoint, path: str, rule: Allowlist, source: Checkpoint | None = None
) -> list[Check]:
    """Return a failed check for each code reference and each other weight file.

    `path` is the path that was opened.

    Equal tensors do not make a file safe: loaders run referenced code and may load the other files.
    Pickles are checked by the names that were read; `scan` checks everything. If the file is a
    byte-for-byte copy of `source`, its code is only a note.
    """
    named = list(_named(checkpoint, rule))
    if named and source is not None and same_bytes(source.sources, checkpoint.sources):
        named = [check._replace(outcome=NOTE) for check in named]
    return [*named, *_unread(checkpoint, path), *not_compared(checkpoint, path)]


def not_compared(checkpoint: Checkpoint, path: str, verb: str = "compared") -> Iterator[Check]:
    """Yield a note for each other thing that loaders may read and that is not compared."""
    if checkpoint.code:
        detail = f"not {verb}: {len(checkpoint.code):,} records of TorchScript code"
        yield Check("code", NOTE, detail, checkpoint.path)
    for finding in checkpoint.findings:
        if finding.rule is LONE_SHARD:
            detail = f"not {verb}: the other shards of the checkpoint ({finding.detail})"
            yield Check("files", NOTE, detail, checkpoint.path, finding=finding.rule.id)
    below = weights_below(path)
    if below:
        detail = f"not {verb}: weight files in subfolders: {listed(below)}"
        yield Check("files", NOTE, detail, path)


def of_source(checkpoint: Checkpoint, path: str, verb: str = "compared") -> list[Check]:
    """Return a note for each other weight file in the folder of SOURCE."""
    what = "another weight file in the folder"
    return [
        Check("files", NOTE, f"not {verb}: {printable(name)}, {what}", path)
        for name in other_weights(path, checkpoint)
    ]


def foreign(checkpoint: Checkpoint, rule: Allowlist) -> list[str]:
    """Return the dotted names in its pickles that are neither needed by weights nor allowed."""
    return rule.others(checkpoint.globals, script=bool(checkpoint.code))


def _named(checkpoint: Checkpoint, rule: Allowlist) -> Iterator[Check]:
    for name in foreign(checkpoint, rule):
        matched, word = (FOREIGN, "foreign")
        if is_dangerous_path(name):
            matched, word = (DANGEROUS, "dangerous")
        detail = f"{word}: the pickle references {printable(name)}; run scan for details"
        yield Check("globals", FAILED, detail, checkpoint.path, finding=matched.id)


def _unread(checkpoint: Checkpoint, path: str) -> Iterator[Check]:
    what = "verify each file separately" if checkpoint.path != path else "remove it"
    for name in other_weights(path, checkpoint):
        detail = (
            f"not verified: {printable(name)}, another weight file in the folder, which programs "
            f"may load instead; {what}"
        )
        yield Check("files", FAILED, detail, path)

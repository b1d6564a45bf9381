"""Check results, as produced by verify, scan and `inspect --check` and rendered by `reports`.

Checks are values; nothing in this module prints. A command's exit code is that of the worst check.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

PASSED, NOTE, FAILED, ERROR = "passed", "note", "failed", "error"  # from best to worst
_EXIT_CODES = {PASSED: 0, NOTE: 0, FAILED: 1, ERROR: 3}


class Check(NamedTuple):
    """One check: its subject, its location and its outcome.

    `outcome` is "passed", "note" (informational), "failed" (a difference or unsafe content) or
    "error" (not checked, because the input is malformed, unsupported or unreadable).
    """

    name: str  # what was checked: "bytes", "shape", "globals" ...
    outcome: str
    detail: str = ""  # one line: what was seen, and what was expected
    file: str = ""  # as the user gave it
    tensor: str = ""  # the tensor concerned, if any
    finding: str = ""  # the id of the rule in `findings`, if one applies


def exit_code(checks: Iterable[Check]) -> int:
    """Return 3 if a check ended in an error, else 1 if one failed, else 0."""
    return max((_EXIT_CODES[check.outcome] for check in checks), default=0)

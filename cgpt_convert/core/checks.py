"""The result of one check: what verify, scan and `inspect --check` give, and reports word.

Checks are values; nothing here prints. A command's exit code follows from the worst of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

PASSED, NOTE, FAILED, ERROR = "passed", "note", "failed", "error"  # better first
_EXIT_CODES = {PASSED: 0, NOTE: 0, FAILED: 1, ERROR: 3}


class Check(NamedTuple):
    """What was checked, where, and how it ended.

    `outcome` is "passed", "note" (worth saying, not wrong), "failed" (a difference or a danger) or
    "error" (it could not be checked: the input is malformed, unsupported or unreadable).
    """

    name: str  # what was checked: "bytes", "shape", "globals" ...
    outcome: str
    detail: str = ""  # one line: what was seen, and what was expected
    file: str = ""  # as the user gave it
    tensor: str = ""  # the tensor it is about, if it is about one
    finding: str = ""  # the id of a rule of `findings`, where one applies


def exit_code(checks: Iterable[Check]) -> int:
    """0 if all passed, 1 if one failed, 3 if one could not be made; an error outweighs."""
    return max((_EXIT_CODES[check.outcome] for check in checks), default=0)

"""Plain text reports: one line per check."""

from __future__ import annotations

from collections.abc import Sequence

from cgpt_convert.core.checks import ERROR, FAILED, NOTE, PASSED, Check
from cgpt_convert.core.text import printable

_WORDS = {PASSED: "ok", NOTE: "note", FAILED: "FAILED", ERROR: "ERROR"}
_WIDTH = max(map(len, _WORDS.values()))


def report(checks: Sequence[Check]) -> str:
    """Format lines such as `FAILED  model.bin: detail [CGPT015]`; a tensor follows the file."""
    return "\n".join(map(_line, checks))


def _line(check: Check) -> str:
    where = "".join(f"{part}: " for part in (check.file, check.tensor) if part)
    mark = f" [{check.finding}]" if check.finding else ""
    shown = printable(f"{where}{check.detail or check.name}{mark}")
    return f"{_WORDS[check.outcome]:<{_WIDTH}}  {shown}"

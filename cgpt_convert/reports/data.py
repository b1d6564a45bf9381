"""JSON reports with all fields of every check."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cgpt_convert.core.checks import Check, exit_code


def report(checks: Sequence[Check]) -> str:
    """Return an object with `ok`, `exit_code` and `checks`; docs/reference/json.md has the keys."""
    code = exit_code(checks)
    rows = [check._asdict() for check in checks]
    return json.dumps({"ok": code == 0, "exit_code": code, "checks": rows}, indent=2)

"""GitHub workflow annotations: `::error file=...,title=...::message` on standard output."""

from __future__ import annotations

from collections.abc import Sequence

from cgpt_convert.core.checks import ERROR, FAILED, PASSED, Check
from cgpt_convert.core.findings import BY_ID
from cgpt_convert.core.text import printable


def report(checks: Sequence[Check]) -> str:
    """Return one command per check that did not pass, and a last line with the number passed.

    The workflow does not interpret the last line as a command.
    """
    lines = [_command(check) for check in checks if check.outcome != PASSED]
    passed = sum(check.outcome == PASSED for check in checks)
    return "\n".join([*lines, f"{passed:,} of {len(checks):,} checks passed"])


def _command(check: Check) -> str:
    rule = BY_ID.get(check.finding)
    warning = rule is not None and rule.level != "note"
    level = "error" if check.outcome in (FAILED, ERROR) else "warning" if warning else "notice"
    title = f"{rule.id} {rule.title}" if rule else check.name
    properties = [f"file={_property(check.file)}"] if check.file else []
    properties.append(f"title={_property(title)}")
    tensor = f"{check.tensor}: " if check.tensor else ""
    return f"::{level} {','.join(properties)}::{_data(tensor + check.detail)}"


def _data(text: str) -> str:
    """Escape a message: only these three characters are special to the runner."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

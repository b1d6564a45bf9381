"""Annotations of a GitHub workflow: `::error file=...,title=...::message` on standard output."""

from __future__ import annotations

from collections.abc import Sequence

from cgpt_convert.core.checks import ERROR, FAILED, PASSED, Check
from cgpt_convert.core.findings import BY_ID
from cgpt_convert.core.text import printable


def report(checks: Sequence[Check]) -> str:
    """A command a check that did not pass, and a last line that says how many did.

    The last line is one that the workflow does not take for a command.
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
    """A message: of its characters only these three mean anything to the runner."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

"""Rendering of checks as text reports. Pure functions; the caller prints the result."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from cgpt_convert.core.checks import Check

FORMATS = ("text", "json", "junit", "sarif", "github")
_MODULES = {"text": "lines", "json": "data"}  # formats named like a library


def render(checks: Sequence[Check], form: str) -> str:
    """Return the report in one of `FORMATS`, without a final newline."""
    module = importlib.import_module(f"{__name__}.{_MODULES.get(form, form)}")
    report: str = module.report(checks)
    return report

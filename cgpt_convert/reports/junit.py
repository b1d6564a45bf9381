"""JUnit XML for CI servers: one suite per file, one case per check.

There is no single standard; this follows what the schemas of Jenkins and Apache Ant both allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from cgpt_convert.core.checks import ERROR, FAILED, NOTE, Check
from cgpt_convert.core.text import printable

_ELEMENTS = {FAILED: "failure", ERROR: "error"}


def report(checks: Sequence[Check]) -> str:
    """Return a `testsuites` document."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>']
    lines.append(f"<testsuites {_counts(checks)}>")
    by_file = sorted(checks, key=lambda check: check.file)
    for file, group in groupby(by_file, key=lambda check: check.file):
        cases = list(group)
        lines.append(f"  <testsuite name={_quoted(file or 'cgpt-convert')} {_counts(cases)}>")
        for check in cases:
            lines += _case(check)
        lines.append("  </testsuite>")
    return "\n".join([*lines, "</testsuites>"])


def _counts(checks: Sequence[Check]) -> str:
    failures = sum(check.outcome == FAILED for check in checks)
    errors = sum(check.outcome == ERROR for check in checks)
    return f'tests="{len(checks)}" failures="{failures}" errors="{errors}" time="0"'


def _case(check: Check) -> Iterator[str]:
    name = " ".join(part for part in (check.name, check.finding, check.tensor) if part)
    start = f"    <testcase classname={_quoted(check.file or 'cgpt-convert')} name={_quoted(name)}"
    element = _ELEMENTS.get(check.outcome)
    if element:
        yield f'{start} time="0">'
        kind = _quoted(check.finding or check.name)
        message = _quoted(check.detail)
        yield f"      <{element} type={kind} message={message}>{_escaped(check.detail)}</{element}>"
        yield "    </testcase>"
    elif check.outcome == NOTE:
        yield f'{start} time="0">'
        yield f"      <system-out>{_escaped(check.detail)}</system-out>"
        yield "    </testcase>"
    else:
        yield f'{start} time="0"/>'


def _escaped(text: str) -> str:
    """Escape text for XML 1.0, which cannot contain control characters or lone surrogates."""
    text = printable(text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace('"', "&quot;") + '"'

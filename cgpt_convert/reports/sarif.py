"""SARIF 2.1.0 (OASIS), for code scanning services.

What passed is left out. A weight file has no lines: GitHub wants a line all the same, so it is 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from cgpt_convert import __version__
from cgpt_convert.checks import ERROR, FAILED, NOTE, PASSED, Check
from cgpt_convert.findings import BY_ID
from cgpt_convert.inert import printable

_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS = {FAILED: "error", ERROR: "error", NOTE: "note"}


def report(checks: Sequence[Check]) -> str:
    """A log of one run, its rules those that the results name."""
    results = [check for check in checks if check.outcome != PASSED]
    ids = sorted({_rule_id(check) for check in results})
    driver = {
        "name": "cgpt-convert",
        "version": __version__,
        "rules": [_rule(name) for name in ids],
    }
    failed = any(check.outcome == ERROR for check in checks)
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": not failed}],
        "results": [_result(check, ids.index(_rule_id(check))) for check in results],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _rule_id(check: Check) -> str:
    """The finding's id, or the name of the check where no finding applies."""
    return check.finding or check.name


def _rule(name: str) -> dict[str, Any]:
    found = BY_ID.get(name)
    if found is None:
        return {"id": name, "shortDescription": {"text": f"the check of {name}"}}
    return {
        "id": found.id,
        "shortDescription": {"text": found.title},
        "fullDescription": {"text": found.text},
        "help": {"text": f"{found.title}. {found.text}"},
        "defaultConfiguration": {"level": found.level},
    }


def _result(check: Check, rule_index: int) -> dict[str, Any]:
    rule = BY_ID.get(check.finding)
    level = rule.level if rule and check.outcome == NOTE else _LEVELS[check.outcome]
    tensor = f"{check.tensor}: " if check.tensor else ""
    result: dict[str, Any] = {
        "ruleId": _rule_id(check),
        "ruleIndex": rule_index,
        "level": level,
        "message": {"text": printable(tensor + check.detail) or check.name},
    }
    if check.file:
        place = {"artifactLocation": {"uri": _uri(check.file)}, "region": {"startLine": 1}}
        result["locations"] = [{"physicalLocation": place}]
    if check.tensor:
        logical = {"fullyQualifiedName": check.tensor, "kind": "member"}
        result.setdefault("locations", [{}])[0]["logicalLocations"] = [logical]
    return result


def _uri(path: str) -> str:
    """The path as a URI reference, relative to where the command ran if it lies below."""
    if "://" in path:
        return quote(path, safe=":/?&=%")
    relative = os.path.relpath(path) if os.path.isabs(path) else os.path.normpath(path)
    if relative.startswith(".."):
        return "file://" + _quoted(os.path.abspath(path))
    return _quoted(relative)


def _quoted(path: str) -> str:
    """The bytes that the file system has, which need not be text, percent-encoded."""
    path = path.replace(os.sep, "/")
    try:
        return quote(os.fsencode(path))
    except UnicodeEncodeError:  # a name that no file has
        return quote(path, errors="replace")

"""SARIF 2.1.0 (OASIS), for code scanning services.

Checks that passed are omitted. GitHub rejects a whole upload for one result without a file and a
line, or for too many results; a weight file has no lines, so the line is 1.
See https://docs.github.com/en/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from cgpt_convert import __version__
from cgpt_convert.core.checks import ERROR, FAILED, NOTE, PASSED, Check
from cgpt_convert.core.findings import BY_ID, DANGEROUS, FOREIGN
from cgpt_convert.core.text import printable

_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_MOST = 25_000  # results of one run that GitHub accepts
_LEVELS = ("note", "warning", "error")  # from best to worst
# GitHub shows 9.0 and above as critical, from 7.0 as high, from 4.0 as medium, below as low
_SEVERITIES = {"error": "7.5", "warning": "5.0", "note": "2.0"}
_WORST_SEVERITY = "9.8"  # for code that runs on loading
_ABOUT_PICKLES = "https://docs.python.org/3/library/pickle.html"
_ABOUT_FILES = "https://docs.pytorch.org/docs/stable/notes/serialization.html"


def report(checks: Sequence[Check]) -> str:
    """Return a log of one run, with the rules that its results refer to."""
    results = _limited([check for check in checks if check.outcome != PASSED])
    levels: dict[str, str] = {}
    for check in results:
        name = _rule_id(check)
        levels[name] = max(levels.get(name, "note"), _level(check), key=_LEVELS.index)
    ids = sorted(levels)
    driver = {
        "name": "cgpt-convert",
        "version": __version__,
        "rules": [_rule(name, levels[name]) for name in ids],
    }
    failed = any(check.outcome == ERROR for check in checks)
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": not failed}],
        "results": list(_results(results, ids)),
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _limited(checks: list[Check]) -> list[Check]:
    """Return all checks, or the worst ones and one that counts the rest."""
    if len(checks) <= _MOST:
        return checks
    worst = sorted(checks, key=lambda check: -_LEVELS.index(_level(check)))
    rest = worst[_MOST - 1 :]
    level = FAILED if _level(rest[0]) == "error" else NOTE
    detail = f"{len(rest):,} more results: a report is limited to {_MOST:,} (--json has all)"
    return [*worst[: _MOST - 1], Check("report", level, detail)]


def _rule_id(check: Check) -> str:
    """Return the finding's id, or the name of the check if no finding applies."""
    return check.finding or check.name


def _level(check: Check) -> str:
    rule = BY_ID.get(check.finding)
    if check.outcome in (FAILED, ERROR):
        return "error"
    level = rule.level if rule else "note"
    # notes are accepted findings, and DANGEROUS is never accepted
    return "warning" if level == "error" and rule is not DANGEROUS else level


def _rule(name: str, level: str) -> dict[str, Any]:
    """Return a rule; `level` is the worst of its results.

    A finding that only informs in `inspect` can fail a `scan`, so the level of the rule is that
    of the command that ran.
    """
    rule = BY_ID.get(name)
    title = rule.title if rule else f"the check of {name}"
    text = rule.text if rule else f"The check of {name} did not pass; the result says why."
    runs_code = name == DANGEROUS.id
    return {
        "id": name,
        "shortDescription": {"text": title},
        "fullDescription": {"text": text},
        "help": {"text": f"{title}. {text}"},
        "helpUri": _ABOUT_PICKLES if name in (DANGEROUS.id, FOREIGN.id) else _ABOUT_FILES,
        "defaultConfiguration": {"level": level},
        "properties": {
            "tags": ["security"],
            "precision": "high",
            "security-severity": _WORST_SEVERITY if runs_code else _SEVERITIES[level],
        },
    }


def _results(checks: list[Check], ids: list[str]) -> Iterator[dict[str, Any]]:
    index = {name: number for number, name in enumerate(ids)}
    seen: Counter[str] = Counter()
    for check in checks:
        result = _result(check, index[_rule_id(check)])
        fingerprint = _fingerprint(check, result)
        seen[fingerprint] += 1
        # the name that GitHub knows, in its form: a hash, and its number among equal hashes
        result["partialFingerprints"] = {
            "primaryLocationLineHash": f"{fingerprint}:{seen[fingerprint]}"
        }
        yield result


def _result(check: Check, rule_index: int) -> dict[str, Any]:
    tensor = f"{check.tensor}: " if check.tensor else ""
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(check.file or ".")},  # default: the folder
            "region": {"startLine": 1},
        }
    }
    if check.tensor:
        logical = {"fullyQualifiedName": printable(check.tensor), "kind": "member"}
        location["logicalLocations"] = [logical]
    return {
        "ruleId": _rule_id(check),
        "ruleIndex": rule_index,
        "level": _level(check),
        "message": {"text": printable(tensor + check.detail) or check.name},
        "locations": [location],
    }


def _fingerprint(check: Check, result: dict[str, Any]) -> str:
    """Return a hash that is stable across runs: of rule, file and tensor or message."""
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    about = printable(check.tensor) or result["message"]["text"]
    return hashlib.sha256(json.dumps([result["ruleId"], uri, about]).encode()).hexdigest()[:16]


def _uri(path: str) -> str:
    """Return the path as a URI reference, relative to the current folder if it is inside."""
    if "://" in path:
        return re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", quote(path, safe=":/?&=%[]"))
    relative = os.path.relpath(path) if os.path.isabs(path) else os.path.normpath(path)
    if relative.startswith(".."):
        return "file://" + _quoted(os.path.abspath(path))
    return _quoted(relative)


def _quoted(path: str) -> str:
    """Return the bytes of a path, which may not be text, percent-encoded."""
    path = path.replace(os.sep, "/")
    try:
        return quote(os.fsencode(path))
    except UnicodeEncodeError:  # not a valid file name
        return quote(path, errors="replace")

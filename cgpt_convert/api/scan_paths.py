"""`scan`, and its result."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from cgpt_convert.api.arguments import Path
from cgpt_convert.core.checks import ERROR, FAILED, NOTE, Check, exit_code
from cgpt_convert.core.errors import BadRequest, CgptError
from cgpt_convert.core.text import counted
from cgpt_convert.core.threads import Progress, no_progress, step
from cgpt_convert.scanning import expand_paths
from cgpt_convert.scanning.allowlist import Allowlist
from cgpt_convert.scanning.policy import Policy, load
from cgpt_convert.scanning.raw_folders import RAW
from cgpt_convert.scanning.result import WORST_FIRST, FailOn, FileScan, Verdict
from cgpt_convert.scanning.scan_files import scan_each


class ScanResult(NamedTuple):
    """The findings of `scan` in each file. Its truth value is `ok`.

    `checks` are the findings as checks, which say where each is and what it means. A finding that
    `fail_on` or the policy accepts is a note.
    """

    files: tuple[FileScan, ...]
    errors: tuple[CgptError, ...]  # of folders that could not be listed
    checks: tuple[Check, ...]
    unused: tuple[str, ...]  # names of `allow` that no file uses

    def __repr__(self) -> str:
        return f"<ScanResult: {self.verdict.value}, {counted(len(self.files), 'file')}>"

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the files; "not scanned" if only a folder is unreadable."""
        verdicts = {file.verdict for file in self.files}
        if self.errors:
            verdicts.add(Verdict.NOT_SCANNED)
        return next((verdict for verdict in WORST_FIRST if verdict in verdicts), Verdict.NOTHING)

    @property
    def ok(self) -> bool:
        """Whether no check failed: by default, whether all is clean or contains no weights."""
        return exit_code(self.checks) == 0

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Return what `scan --json` prints; docs/reference/json.md lists the keys."""
        verdicts = Counter(file.verdict for file in self.files)
        return {
            "ok": self.ok,
            "verdicts": {verdict.value: verdicts[verdict] for verdict in Verdict},
            "files": [_file(file) for file in self.files],
            "errors": [{"path": error.where, "message": error.message} for error in self.errors],
            "unused": [*self.unused],
        }


def _file(file: FileScan) -> dict[str, Any]:
    return {
        "path": file.path,
        "kind": file.kind,
        "verdict": file.verdict.value,
        "pickles": file.pickles,
        "allowed": file.added,
        "sightings": [
            {key: value for key, value in sighting._asdict().items() if key != "option"}
            | {"rule": sighting.rule.id}
            for sighting in file.sightings
        ],
        "problems": [
            {"id": finding.rule.id, "detail": finding.detail} for finding in file.problems
        ],
        "notes": [{"id": finding.rule.id, "detail": finding.detail} for finding in file.notes],
    }


def scan(
    *paths: Path,
    allow: Sequence[str] = (),
    policy: Path | None = None,
    fail_on: str | None = None,
    require_weights: bool = False,
    jobs: int = 0,
    progress: Progress = no_progress,
) -> ScanResult:
    """Return what loading the files at `paths` would run; folders with everything below them.

    Nothing is loaded or run. `allow` has further names that are allowed, as `module.Name`; `policy`
    is the path of a policy file. `fail_on` is the mildest verdict that fails: "not-scanned", the
    default, "foreign" or "dangerous". With `require_weights`, it fails, too, if there is no weight
    file. Errors in files are among the findings. `progress` counts files. Raises BadRequest for a
    path that does not exist, and if there is no path, since nothing would be scanned.
    """
    if not paths:
        raise BadRequest("no path is given, so that nothing would be scanned")
    rules = load(os.fspath(policy)) if policy is not None else Policy()
    level = _level(fail_on) or rules.fail_on or FailOn.NOT_SCANNED
    rule = Allowlist((*allow, *rules.names))
    with step("listing files"):
        every = list(expand_paths.files(os.fspath(path) for path in paths))
    kept = [path for path in every if not (isinstance(path, str) and rules.excludes(path))]
    scans: list[FileScan | CgptError] = []
    with progress(f"scanning {counted(len(kept), 'file')}", len(kept)) as advance:
        for each in scan_each(kept, rule, jobs):
            scans.append(each)
            advance(1)
    files = tuple(file for file in scans if isinstance(file, FileScan))
    errors = tuple(error for error in scans if isinstance(error, CgptError))
    checks = [check for file in files for check in rules.checks(file, rules.expected(file), level)]
    if len(kept) < len(every):
        count = counted(len(every) - len(kept), "file")
        checks.append(Check("policy", NOTE, f"{count} excluded by the policy"))
    checks += rules.unused()
    checks += [Check("scan", ERROR, error.message, error.where) for error in errors]
    skipped = [file for file in files if file.verdict is Verdict.NOTHING]
    if skipped:
        checks.append(Check("scan", NOTE, _skipped(skipped)))
    unused = rule.unused(name for file in files for name in file.added)
    checks += [
        Check("allow", NOTE, f"--allow {name} matches no name in these files") for name in unused
    ]
    if require_weights and not any(file.weights or file.kind == RAW for file in files):
        checks.append(Check("weights", FAILED, f"no weight file in {counted(len(scans), 'file')}"))
    return ScanResult(files, errors, tuple(checks), tuple(unused))


def _level(fail_on: str | None) -> FailOn | None:
    try:
        return None if fail_on is None else FailOn(fail_on)
    except ValueError:
        hint = f"choose from {', '.join(level.value for level in FailOn)}"
        raise BadRequest(f"{fail_on!r} is not a value of fail_on", hint=hint) from None


def _skipped(files: Sequence[FileScan]) -> str:
    kinds = Counter(file.kind for file in files).most_common()
    shown = ", ".join(counted(count, kind) for kind, count in kinds)
    verb = "contains" if len(files) == 1 else "contain"
    return f"{counted(len(files), 'file')} {verb} no weights and no pickle ({shown})"

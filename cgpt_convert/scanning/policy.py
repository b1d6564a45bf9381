"""The policy file of a team, `cgpt-scan.toml`: what it accepts, and why.

It is read only if the user passes it: a scanned repository must not choose its own policy.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from cgpt_convert.core.checks import FAILED, NOTE, Check
from cgpt_convert.core.errors import BadRequest, CgptError
from cgpt_convert.core.limits import CONFIG_BYTES
from cgpt_convert.core.text import printable
from cgpt_convert.scanning.result import FailOn, FileScan, Verdict
from cgpt_convert.sources.local import CHUNK, LocalFile, read
from cgpt_convert.sources.paths import open_source

_DIGEST = re.compile(r"[0-9a-f]{64}")


class AllowedName(NamedTuple):
    """A name that the team's own files may use."""

    name: str
    reason: str


class ExcludedPaths(NamedTuple):
    """A pattern of paths that are not scanned. `*` also matches separators."""

    paths: str
    reason: str


class ExpectedVerdict(NamedTuple):
    """The expected verdict for the file with this SHA-256."""

    sha256: str
    verdict: str
    reason: str


class Policy:
    """The content of the policy file at `path`, and the entries used so far."""

    def __init__(
        self,
        path: str = "",
        fail_on: FailOn | None = None,
        allow: tuple[AllowedName, ...] = (),
        exclude: tuple[ExcludedPaths, ...] = (),
        expect: tuple[ExpectedVerdict, ...] = (),
    ) -> None:
        self.path, self.fail_on = path, fail_on
        self.allow, self.exclude = allow, exclude
        self.expect = {each.sha256: each for each in expect}
        self.used: set[AllowedName | ExcludedPaths | ExpectedVerdict] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the policy allows."""
        return tuple(each.name for each in self.allow)

    def excludes(self, path: str) -> bool:
        """Return whether the file is excluded, matching its normalised path."""
        shown = os.path.normpath(path).replace(os.sep, "/")
        for each in self.exclude:
            if fnmatch.fnmatchcase(shown, each.paths):
                self.used.add(each)
                return True
        return False

    def expected(self, file: FileScan) -> ExpectedVerdict | None:
        """Return the entry that matches the file's SHA-256, or None."""
        if not self.expect or file.verdict is Verdict.NOTHING:
            return None
        try:
            digest = sha256(file.path)
        except CgptError:  # the scan reports the error
            return None
        each = self.expect.get(digest)
        if each is not None:
            self.used.add(each)
        return each

    def checks(
        self, file: FileScan, expected: ExpectedVerdict | None, fail_on: FailOn
    ) -> list[Check]:
        """Return the checks of the file; if its verdict is expected, all of them are notes."""
        self.used |= {each for each in self.allow if each.name.replace(":", ".") in file.added}
        if expected is None:
            return file.checks(fail_on)
        verdict = file.verdict.value
        if verdict != expected.verdict:
            detail = f"the policy expects the verdict {expected.verdict!r}, but it is {verdict!r}"
            return [Check("policy", FAILED, detail, file.path), *file.checks(fail_on)]
        detail = f"{verdict}, as the policy expects: {printable(expected.reason)}"
        return [
            Check("policy", NOTE, detail, file.path),
            *(check._replace(outcome=NOTE) for check in file.checks(fail_on)),
        ]

    def unused(self) -> Iterator[Check]:
        """Yield a note for each entry that applied to no file."""
        for each in (*self.allow, *self.exclude, *self.expect.values()):
            if each not in self.used:
                detail = f"the entry {printable(each[0])!r} matches no scanned file"
                yield Check("policy", NOTE, detail, self.path)


def load(path: str) -> Policy:
    """Read the policy file at `path`. Raises BadRequest if its content is invalid."""
    table = _table(path)
    level = table.pop("fail-on", None)
    try:
        fail_on = None if level is None else FailOn(level)
    except ValueError:
        allowed = ", ".join(each.value for each in FailOn)
        raise BadRequest(
            f"invalid fail-on {level!r}; valid values: {allowed}", where=path
        ) from None
    allow = tuple(
        AllowedName(**each) for each in _entries(table, "allow", AllowedName._fields, path)
    )
    exclude = tuple(
        ExcludedPaths(**each) for each in _entries(table, "exclude", ExcludedPaths._fields, path)
    )
    expect = tuple(
        ExpectedVerdict(**each) for each in _entries(table, "expect", ExpectedVerdict._fields, path)
    )
    for each in expect:
        if not _DIGEST.fullmatch(each.sha256):
            message = f"invalid SHA-256: {each.sha256[:80]!r}"
            hint = "write 64 lower-case hexadecimal digits, as `sha256sum FILE` prints them"
            raise BadRequest(message, where=path, hint=hint)
        if each.verdict not in {verdict.value for verdict in Verdict}:
            hint = f"valid verdicts: {', '.join(verdict.value for verdict in Verdict)}"
            raise BadRequest(f"unknown verdict: {each.verdict!r}", where=path, hint=hint)
    if table:
        hint = "valid keys: fail-on, allow, exclude, expect"
        raise BadRequest(f"unknown key: {min(table)!r}", where=path, hint=hint)
    return Policy(path, fail_on, allow, exclude, expect)


def _table(path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    file = LocalFile(path)
    try:
        if file.nbytes > CONFIG_BYTES:
            raise BadRequest(f"the policy file is larger than {CONFIG_BYTES:,} bytes", where=path)
        return tomllib.loads(read(file, 0, file.nbytes).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"invalid TOML: {error}", where=path) from error
    finally:
        file.close()


def _entries(
    table: dict[str, Any], key: str, fields: tuple[str, ...], path: str
) -> list[dict[str, str]]:
    entries = table.pop(key, [])
    if not isinstance(entries, list):
        entries = [entries]
    for each in entries:
        texts = isinstance(each, dict) and all(
            isinstance(value, str) and value.strip() for value in each.values()
        )
        if not texts or each.keys() != set(fields):
            raise BadRequest(
                f"each [[{key}]] needs exactly these keys, with text values: {', '.join(fields)}",
                where=path,
            )
    return list(entries)


def sha256(path: str) -> str:
    """Return the SHA-256 of the file's bytes, in hexadecimal."""
    import hashlib

    source = open_source(path)
    try:
        digest = hashlib.sha256()
        for at in range(0, source.nbytes, CHUNK):
            digest.update(read(source, at, min(CHUNK, source.nbytes - at)))
        return digest.hexdigest()
    finally:
        source.close()

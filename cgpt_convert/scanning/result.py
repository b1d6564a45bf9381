"""The result of scanning one file, and its verdict. Values only."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from cgpt_convert.core.checks import ERROR, FAILED, NOTE, PASSED, Check
from cgpt_convert.core.findings import (
    CLOSED,
    CODE,
    DANGEROUS,
    FOREIGN,
    NOT_JUDGED,
    Finding,
    FindingRule,
)
from cgpt_convert.core.text import printable
from cgpt_convert.scanning import kinds
from cgpt_convert.scanning.raw_folders import RAW

_SHOWN = 20  # limit of sightings, of problems and of notes per file that become checks


class Verdict(Enum):
    """The verdict on a file: that of the worst finding in it."""

    CLEAN = "clean"
    FOREIGN = "foreign"
    DANGEROUS = "dangerous"
    MALFORMED = "malformed"
    NOT_SCANNED = "not scanned"
    NOTHING = "no weights"


WORST_FIRST = (
    Verdict.DANGEROUS,
    Verdict.MALFORMED,
    Verdict.FOREIGN,
    Verdict.NOT_SCANNED,
    Verdict.CLEAN,
    Verdict.NOTHING,
)


class FailOn(Enum):
    """The mildest verdict that fails a scan. Dangerous and malformed files always fail it."""

    DANGEROUS = "dangerous"
    FOREIGN = "foreign"
    NOT_SCANNED = "not-scanned"


ACCEPTED = {
    FailOn.DANGEROUS: (Verdict.FOREIGN, Verdict.NOT_SCANNED),
    FailOn.FOREIGN: (Verdict.NOT_SCANNED,),
    FailOn.NOT_SCANNED: (),
}


class CodeReference(NamedTuple):
    """A name that a pickle uses and weight files do not need, or code in another form."""

    rule: FindingRule  # DANGEROUS, FOREIGN or CODE
    place: str  # record and nested files, e.g. "archive/data.pkl"; "" for the file itself
    position: int  # byte offset in `place`
    name: str
    how: str  # "calls", "names", "changes" or "contains"
    calls: int  # number of calls
    text: str  # the first call with its arguments, truncated
    option: str = ""  # the name as --allow would take it; "" if that would not help

    def __str__(self) -> str:
        where = printable(self.place)
        if self.how != "contains" or not where:
            where = f"{where}, " * bool(where) + f"byte {self.position:,}"
        more = f" ({self.calls:,} times)" if self.calls > 1 else ""
        return f"{where}: {ACTIONS[self.how]} {self.text}{more}"


# what loading a file would do
ACTIONS = {
    "calls": "would call",
    "names": "would import",
    "changes": "would set attributes of",
    "contains": "contains",
}


class FileScan(NamedTuple):
    """The result for one file. `pickles` counts the pickles at any nesting depth."""

    path: str
    kind: str
    weights: bool  # whether it contains weights or any pickle
    pickles: int
    added: list[str]  # names in them that the user allows
    sightings: list[CodeReference]
    problems: list[Finding]
    notes: list[Finding]

    @property
    def verdict(self) -> Verdict:
        """The verdict of the worst finding; clean only if everything in the file was understood.

        Dangerous takes precedence over malformed, since code runs before the damage is reached.
        """
        if any(sighting.rule is DANGEROUS for sighting in self.sightings):
            return Verdict.DANGEROUS
        if any(problem.rule is not CLOSED for problem in self.problems):
            return Verdict.MALFORMED
        if self.sightings:
            return Verdict.FOREIGN
        if self.problems:
            return Verdict.NOT_SCANNED
        return Verdict.CLEAN if self.weights else Verdict.NOTHING

    def checks(self, fail_on: FailOn = FailOn.NOT_SCANNED) -> list[Check]:
        """Return the file as checks; none if it has no weights and no name of a weight file.

        Verdicts that `fail_on` accepts become notes.
        """
        verdict = self.verdict
        accepted = verdict in ACCEPTED[fail_on]
        if verdict is Verdict.NOTHING:
            if not kinds.names_weights(self.path) or self.kind == RAW:
                return []
            detail = f"{_article(self.kind)} {self.kind}, not weights"
            return [Check("scan", NOTE, detail, self.path)]
        checks = []
        if verdict is Verdict.CLEAN:
            checks.append(Check("scan", PASSED, self._passed(), self.path))
        failed = NOTE if accepted else FAILED
        broken = FAILED if verdict in (Verdict.DANGEROUS, Verdict.FOREIGN) else ERROR
        broken = NOTE if accepted else broken
        dangerous_first = sorted(
            self.sightings, key=lambda sighting: sighting.rule is not DANGEROUS
        )
        for sighting in dangerous_first[:_SHOWN]:
            detail = f"{_MEANS[sighting.rule.id]}: {sighting}"
            checks.append(Check("scan", failed, detail, self.path, finding=sighting.rule.id))
        if len(self.sightings) > _SHOWN:
            detail = f"and {len(self.sightings) - _SHOWN:,} more names (--json has all)"
            checks.append(Check("scan", failed, detail, self.path, finding=FOREIGN.id))
        for outcome, listed in ((broken, self.problems), (NOTE, self.notes)):
            for finding in listed[:_SHOWN]:
                means = _MEANS.get(finding.rule.id, finding.rule.title)
                detail = f"{means}: {finding.detail}"
                checks.append(Check("scan", outcome, detail, self.path, finding=finding.rule.id))
            if len(listed) > _SHOWN:
                detail = f"and {len(listed) - _SHOWN:,} more of that kind (--json has all)"
                rule = listed[_SHOWN].rule  # of the first of them: each failure has an id
                checks.append(Check("scan", outcome, detail, self.path, finding=rule.id))
        return checks

    def _passed(self) -> str:
        count = f", {self.pickles:,} pickle" + "s" * (self.pickles != 1)
        what = self.kind + count * bool(self.pickles)
        if not self.added:
            return f"{Verdict.CLEAN.value}: {what}"
        allowed = ", ".join(map(printable, self.added))
        return f"{Verdict.CLEAN.value}, with allowed names: {allowed} ({what})"


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeioxHOX" else "a"  # HDF5, ONNX, XML, by pronunciation


_MEANS = {
    FOREIGN.id: Verdict.FOREIGN.value,
    CODE.id: Verdict.FOREIGN.value,
    DANGEROUS.id: Verdict.DANGEROUS.value,
    NOT_JUDGED.id: Verdict.MALFORMED.value,
    CLOSED.id: Verdict.NOT_SCANNED.value,
}

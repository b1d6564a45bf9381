"""What a scan finds in one file, and its verdict. Values only."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from cgpt_convert.checks import ERROR, FAILED, NOTE, PASSED, Check
from cgpt_convert.containers.sniff import WEIGHT_SUFFIXES
from cgpt_convert.findings import (
    CLOSED,
    DANGEROUS,
    FOREIGN,
    NOT_JUDGED,
    Finding,
    Rule,
)
from cgpt_convert.inert import printable
from cgpt_convert.scanning.extracted import RAW

_SHOWN = 20  # sightings, problems and notes of one file that become checks of their own


class Verdict(Enum):
    """What a file is. The worst that was found is what counts."""

    WEIGHTS = "weights only"
    FOREIGN = "foreign objects"
    DANGEROUS = "dangerous"
    MALFORMED = "malformed"
    NOTHING = "no weight file"


class Sighting(NamedTuple):
    """A name that a pickle uses and weight files do not need."""

    rule: Rule  # DANGEROUS or FOREIGN
    place: str  # the record, and the file inside it ...: "archive/data.pkl"; "" for the file itself
    position: int  # byte of that place
    name: str
    how: str  # "calls", "names" or "changes"
    calls: int  # how often it is called
    text: str  # what would happen: the first call with its arguments, cut

    def __str__(self) -> str:
        where = f"{printable(self.place)}, " * bool(self.place) + f"byte {self.position:,}"
        more = f" ({self.calls:,} times)" if self.calls > 1 else ""
        return f"{where}: {_WORDS[self.how]} {self.text}{more}"


_WORDS = {"calls": "would call", "names": "names", "changes": "would change"}


class Scanned(NamedTuple):
    """One file. `pickles` is how many were read in it, in whatever depth."""

    path: str
    kind: str
    weights: bool  # does it hold any, or any pickle?
    pickles: int
    added: list[str]  # names in them that the user allows
    sightings: list[Sighting]
    problems: list[Finding]
    notes: list[Finding]

    @property
    def verdict(self) -> Verdict:
        """Dangerous before malformed: what runs does so before the damage is met."""
        if any(sighting.rule is not FOREIGN for sighting in self.sightings):
            return Verdict.DANGEROUS
        if self.problems:
            return Verdict.MALFORMED
        if self.sightings:
            return Verdict.FOREIGN
        return Verdict.WEIGHTS if self.weights else Verdict.NOTHING

    def checks(self) -> list[Check]:
        """The file as checks; none if it is no weight file, and not called like one."""
        verdict = self.verdict
        if verdict is Verdict.NOTHING:
            if not self.path.lower().endswith(WEIGHT_SUFFIXES) or self.kind == RAW:
                return []
            detail = f"{_article(self.kind)} {self.kind}, not weights"
            return [Check("scan", NOTE, detail, self.path)]
        checks = []
        if verdict is Verdict.WEIGHTS:
            checks.append(Check("scan", PASSED, self._passed(), self.path))
        broken = FAILED if verdict is Verdict.DANGEROUS else ERROR
        dangerous_first = sorted(self.sightings, key=lambda sighting: sighting.rule is FOREIGN)
        for sighting in dangerous_first[:_SHOWN]:
            detail = f"{_MEANS[sighting.rule.id]}: {sighting}"
            checks.append(Check("scan", FAILED, detail, self.path, finding=sighting.rule.id))
        if len(self.sightings) > _SHOWN:
            detail = f"and {len(self.sightings) - _SHOWN:,} more names (--json has all)"
            checks.append(Check("scan", FAILED, detail, self.path, finding=FOREIGN.id))
        for outcome, found in ((broken, self.problems), (NOTE, self.notes)):
            for finding in found[:_SHOWN]:
                means = _MEANS.get(finding.rule.id, finding.rule.title)
                detail = f"{means}: {finding.detail}"
                checks.append(Check("scan", outcome, detail, self.path, finding=finding.rule.id))
            if len(found) > _SHOWN:
                detail = f"and {len(found) - _SHOWN:,} more of that kind (--json has all)"
                rule = found[_SHOWN].rule  # of the first of them: each failure has an id
                checks.append(Check("scan", outcome, detail, self.path, finding=rule.id))
        return checks

    def _passed(self) -> str:
        count = f", {self.pickles:,} pickle" + "s" * (self.pickles != 1)
        what = self.kind + count * bool(self.pickles)
        if not self.added:
            return f"{Verdict.WEIGHTS.value}: {what}"
        return f"weights and allowed: {', '.join(map(printable, self.added))} ({what})"


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeioxHOX" else "a"  # HDF5, ONNX, XML: as they are spoken


_MEANS = {
    FOREIGN.id: Verdict.FOREIGN.value,
    DANGEROUS.id: Verdict.DANGEROUS.value,
    NOT_JUDGED.id: Verdict.MALFORMED.value,
    CLOSED.id: "not looked into",
}

"""What was found so far in one file that is scanned, and what of it is worth keeping."""

from __future__ import annotations

from collections.abc import Callable

from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed
from cgpt_convert.core.findings import Finding, Rule
from cgpt_convert.core.text import printable
from cgpt_convert.pickles.nodes import Value
from cgpt_convert.pickles.trace.tracer import Allowed
from cgpt_convert.scanning import allowlist as names
from cgpt_convert.scanning.result import Sighting
from cgpt_convert.sources.local import Source

_MOST = 10_000  # sightings, problems and notes that are kept of one file


class Found:
    """What was found so far in one file."""

    def __init__(self, rule: names.Rule) -> None:
        self.rule = rule
        self.allowed = self.noted(rule.allows)
        self.passed: set[str] = set()  # names that the user added, of the pickle being traced
        self.added: set[str] = set()  # the same of all that are pickles
        self.script = False  # is the file itself a TorchScript archive?
        self.weights = False
        self.pickles = 0
        self.parts = 0
        self.sightings: list[Sighting] = []
        self.problems: list[Finding] = []
        self.notes: list[Finding] = []

    def noted(self, allows: Allowed) -> Allowed:
        """The same answer; the names that only the user allows are remembered."""
        if not self.rule.extra:
            return allows

        def allowed(module: Value, name: Value) -> bool:
            if not allows(module, name):
                return False
            if self.rule.adds(module, name):
                self.passed.add(f"{module}.{name}")
            return True

        return allowed

    def guarded(
        self, look: Callable[..., bool | None], source: Source, place: str, *more: object
    ) -> bool:
        """Call `look` and record an error as a problem. Returns whether it found its kind."""
        try:
            return bool(look(source, place, *more))
        except CgptError as error:
            self.problem(error, place)
            return True

    def sight(self, found: Sighting) -> None:
        """Take in what a pickle would do."""
        if len(self.sightings) < _MOST:
            self.sightings.append(found)

    def problem(self, error: CgptError, place: str) -> None:
        """Take in why something cannot be judged."""
        rule = findings.NOT_JUDGED if isinstance(error, Malformed) else findings.CLOSED
        where = f"{printable(place)}: " if place else ""
        hint = f"; {error.hint}" if error.hint else ""
        self.found(self.problems, rule, f"{where}{printable(error.message)}{hint}")

    def found(self, where: list[Finding], rule: Rule, detail: str) -> None:
        """Add a finding, unless it is the last one again."""
        finding = Finding(rule, detail)
        if finding not in where[-1:] and len(where) < _MOST:
            where.append(finding)

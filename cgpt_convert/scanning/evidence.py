"""Collect the results of scanning one file, up to a limit."""

from __future__ import annotations

from collections.abc import Callable

from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed
from cgpt_convert.core.findings import Finding, FindingRule
from cgpt_convert.core.text import printable
from cgpt_convert.pickles.nodes import Value
from cgpt_convert.pickles.trace.tracer import Allowed
from cgpt_convert.scanning import allowlist
from cgpt_convert.scanning.result import CodeReference
from cgpt_convert.sources.local import Source

_MOST = 10_000  # limit of sightings, of problems and of notes kept per file


class Evidence:
    """The results of scanning one file so far."""

    def __init__(self, rule: allowlist.Allowlist) -> None:
        self.rule = rule
        self.allowed = self.noted(rule.allows)
        self.passed: set[str] = set()  # user-allowed names in the pickle being traced
        self.added: set[str] = set()  # the same for all confirmed pickles
        self.script = False  # whether the file itself is a TorchScript archive
        self.flax = False  # whether it is a checkpoint of Flax
        self.weights = False
        self.pickles = 0
        self.parts = 0
        self.sightings: list[CodeReference] = []
        self.problems: list[Finding] = []
        self.notes: list[Finding] = []

    def noted(self, allows: Allowed) -> Allowed:
        """Wrap `allows` to record the names that only the user allows."""
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
        """Call `look` and record an error as a problem. Return its result, True after an error."""
        try:
            return bool(look(source, place, *more))
        except CgptError as error:
            self.problem(error, place)
            return True

    def sight(self, reference: CodeReference) -> None:
        """Add a use of a name or of other code."""
        if len(self.sightings) < _MOST:
            self.sightings.append(reference)

    def problem(self, error: CgptError, place: str) -> None:
        """Add the reason why something cannot be scanned."""
        rule = findings.NOT_JUDGED if isinstance(error, Malformed) else findings.CLOSED
        where = f"{printable(place)}: " if place else ""
        hint = f"; {error.hint}" if error.hint else ""
        self.found(self.problems, rule, f"{where}{printable(error.message)}{hint}")

    def found(self, where: list[Finding], rule: FindingRule, detail: str) -> None:
        """Add a finding, unless it repeats the last one."""
        finding = Finding(rule, detail)
        if finding not in where[-1:] and len(where) < _MOST:
            where.append(finding)

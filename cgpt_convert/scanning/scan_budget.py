"""The cost limit for scanning one file, in pickle opcodes, depending on the file's size."""

from __future__ import annotations

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.limits import PICKLE, SCANNED, Prices
from cgpt_convert.pickles.trace.tracer import Allowed, Trace, trace
from cgpt_convert.sources.local import Source


class ScanBudgetExceeded(BaseException):
    """The cost limit is exceeded; the rest of the file is not scanned.

    A format plug-in in between, which may catch every Exception, must not continue.
    """

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.unsupported = Unsupported(
            f"scanning the file would take longer than decoding {most:,} pickle opcodes",
            hint="unpack the file and scan its parts",
        )


class ScanBudget:
    """The remaining cost allowance for a file of `nbytes` bytes."""

    def __init__(self, nbytes: int) -> None:
        self.most = self.left = SCANNED.of(nbytes)

    def spend(self, opcodes: int) -> None:
        """Deduct the cost of the next step. Raises ScanBudgetExceeded if too little is left."""
        self.left -= opcodes
        if self.left < 0:
            raise ScanBudgetExceeded(self.most)

    def trace(self, source: Source, at: int, allowed: Allowed) -> Trace:
        """Trace the pickle at byte `at` within the remaining allowance.

        If the trace overruns the allowance, its results are kept and the next `spend` raises.
        """
        self.spend(Prices.pickle)
        most = min(PICKLE.opcodes, self.left)
        traced = trace(source, at, allowed, most)
        self.left -= traced.opcodes + len(traced.uses) * Prices.sighting
        if traced.exhausted and PICKLE.opcodes > most < traced.opcodes:
            return traced._replace(fault=f"more than {self.most:,} opcodes in the file")
        return traced

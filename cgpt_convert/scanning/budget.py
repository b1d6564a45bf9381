"""What looking into one file may cost, counted in opcodes of a pickle, by the file's size."""

from __future__ import annotations

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.limits import PICKLE, SCANNED
from cgpt_convert.pickles.trace.tracer import Allowed, Trace, trace
from cgpt_convert.sources.local import Source

# for how many opcodes each counts: it takes as long
PART = 8  # a file in a file, which is traced besides
UNPACKING = 128  # the beginning of what is compressed
_PICKLE = 16  # besides its own opcodes
_SIGHTED = 24  # a name that is not allowed: it is put into words


class SpentError(Exception):
    """It is used up: what is left of the file is not looked into."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.unsupported = Unsupported(
            f"looking into all of it takes longer than {most:,} opcodes of a pickle",
            hint="scan its parts by themselves",
        )


class Allowance:
    """What is left for a file of that many bytes."""

    def __init__(self, nbytes: int) -> None:
        self.most = self.left = SCANNED.of(nbytes)

    def spend(self, opcodes: int) -> None:
        """Take off what is about to be done. Raises SpentError if there is not as much left."""
        self.left -= opcodes
        if self.left < 0:
            raise SpentError(self.most)

    def trace(self, source: Source, at: int, allowed: Allowed) -> Trace:
        """What the pickle at byte `at` would do, as far as what is left goes.

        Nothing that was seen is lost: what it takes too much, the next one is told.
        """
        self.spend(_PICKLE)
        most = min(PICKLE.opcodes, self.left)
        traced = trace(source, at, allowed, most)
        self.left -= traced.opcodes + len(traced.uses) * _SIGHTED
        if traced.exhausted and PICKLE.opcodes > most < traced.opcodes:
            return traced._replace(fault=f"more than {self.most:,} opcodes in the file")
        return traced

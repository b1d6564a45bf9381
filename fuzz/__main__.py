"""`python -m fuzz TARGET CORPUS [-max_total_time=SECONDS] ...`: libFuzzer's options go through.

CORPUS is a folder that keeps what was found interesting; the first run fills it with seeds.
"""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cgpt_convert"]):
    from fuzz import targets

MIB = 1 << 20
COLLECTED = 1000  # executions between collections of garbage
# the time is with every branch counted, on a machine that does other things; the memory is of all
LIMITS = ("-timeout=5", "-rss_limit_mb=256", f"-max_len={MIB}", "-use_value_profile=1")


def main() -> None:
    """Fuzz the target that the command line names."""
    if len(sys.argv) < 3 or sys.argv[1] not in targets.TARGETS:
        sys.exit(f"{__doc__}\nTARGET is one of {', '.join(targets.TARGETS)}")
    name, corpus = sys.argv[1], Path(sys.argv[2])
    if not corpus.exists():
        # in a process of its own: torch takes as much memory as all else may
        subprocess.run([sys.executable, "-m", "fuzz.seeds", name, corpus], check=True)
    words = [sys.argv[0], str(corpus), *LIMITS, *sys.argv[3:]]

    executions = itertools.count(1)

    def once(data: bytes) -> None:
        targets.run(name, data)
        if next(executions) % COLLECTED == 0:
            gc.collect()

    gc.disable()  # as in the program, which ends before cycles add up
    atheris.Setup(words, once)
    atheris.Fuzz()


main()

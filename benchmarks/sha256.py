"""SHA-256 of a file's pieces on all cores: what a digest of its bytes takes at least.

    python -m benchmarks.sha256 FILE

Nothing but reading and hashing. hashlib lets other threads run while it hashes.
"""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from benchmarks.tasks import CORES

_BUFFER = 1 << 20
_PIECE = 16 << 20


def main(path: str) -> None:
    """Hash each piece of the file, and print how many there are."""
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(CORES) as threads:
        descriptor = file.fileno()
        starts = range(0, os.fstat(descriptor).st_size, _PIECE)
        digests = list(threads.map(lambda start: _piece(descriptor, start), starts))
    print(len(digests))


def _piece(descriptor: int, start: int) -> bytes:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER))
    for at in range(start, start + _PIECE, _BUFFER):
        digest.update(buffer[: os.preadv(descriptor, [buffer], at)])
    return digest.digest()


if __name__ == "__main__":
    main(sys.argv[1])

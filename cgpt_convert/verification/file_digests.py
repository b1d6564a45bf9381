"""The SHA-256 of whole files."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

from cgpt_convert.core.events import Advance, untold
from cgpt_convert.core.threads import WorkerPool, crew_size
from cgpt_convert.sources.local import CHUNK, Source
from cgpt_convert.verification.digests import prepare_for


def file_digests(
    sources: Iterable[Source], jobs: int = 0, advance: Advance = untold
) -> dict[str, str]:
    """Return the SHA-256 of each file in hex, by source name; computed by `jobs` threads."""
    each = {source.name: source for source in sources}
    found: dict[str, str] = {}
    crew = WorkerPool(crew_size(jobs), advance)

    def hash_one(source: Source) -> None:
        crew.wait_prepared()
        import hashlib

        digest = hashlib.sha256()
        for piece in _chunks(source):
            crew.go_on()
            digest.update(piece)
            crew.advance(len(piece))
        source.check_unchanged()
        found[source.name] = digest.hexdigest()

    crew.run([functools.partial(hash_one, s) for s in each.values()], prepare=prepare_for)
    return {name: found[name] for name in each}


def same_bytes(one: Sequence[Source], other: Sequence[Source], jobs: int = 0) -> bool:
    """Return whether both lists of files have the same bytes, in the same order."""
    if [source.nbytes for source in one] != [source.nbytes for source in other]:
        return False
    digests = [[*file_digests(files, jobs).values()] for files in (one, other)]
    return digests[0] == digests[1]


def _chunks(source: Source) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(CHUNK, source.nbytes)))
    for start in range(0, source.nbytes, CHUNK):
        piece = buffer[: min(CHUNK, source.nbytes - start)]
        source.readinto(start, piece)
        yield piece

"""Detection of a file's kind from its content; the name is not used.

The formats' magic numbers come before those of other files, and before the formats' functions: what
a magic number identifies is certain, and a file can be valid in two formats.
"""

from __future__ import annotations

import functools

from cgpt_convert.formats import registry
from cgpt_convert.formats.file_kinds import MAGIC, FileKind, Start, other_kind
from cgpt_convert.sources.local import Source


def sniff(source: Source, *, record: bool = False) -> FileKind:
    """Return the kind of file that `source` is. Damage inside is left to the reader.

    `record` marks a record of an archive (see `Start`). Raises Unreadable if the bytes cannot be
    read.
    """
    start = Start(source, record=record)
    if start.container is None:
        for offset, magic, kind in _magic():
            if start.head.startswith(magic, offset):
                return kind
    for form in registry.built_in():
        detected = form.detected(start)
        if detected is not None:
            return detected
    return other_kind(start)


@functools.cache
def _magic() -> tuple[tuple[int, bytes, FileKind], ...]:
    """Return offset, bytes and kind of every magic number."""
    formats = (
        (offset, magic, form.kind) for form in registry.built_in() for offset, magic in form.magic
    )
    return (*formats, *MAGIC)

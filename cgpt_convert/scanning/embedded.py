"""The byte strings of a pickle as files, in whatever way they are written there."""

from __future__ import annotations

import codecs

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.pickles.trace.cursor import Span
from cgpt_convert.sources.local import MemoryBytes, Source, read
from cgpt_convert.sources.unpack import Window

_TEXT_NBYTES = 64 << 20  # of bytes written as text, which are decoded as a whole


def source_of(span: Span, source: Source, label: str) -> Source | None:
    """The bytes that a pickle holds, in whatever way; None if it is a text that is none."""
    if span.form == "bytes":
        return Window(source, span.offset, span.nbytes, label)
    if span.nbytes > _TEXT_NBYTES:
        raise Unsupported(f"{span.nbytes:,} bytes written as text")
    data = span.head if span.nbytes <= len(span.head) else read(source, span.offset, span.nbytes)
    try:
        if span.form == "quoted":
            return MemoryBytes(label, codecs.escape_decode(data[1:-1])[0])
        if span.form == "escaped":
            return MemoryBytes(label, data.decode("raw-unicode-escape").encode("latin-1"))
        return MemoryBytes(label, data.decode("utf-8", "surrogateescape").encode("latin-1"))
    except ValueError:
        return None

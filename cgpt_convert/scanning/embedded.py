"""Byte strings inside a pickle as sources, in any encoding that pickles use for them."""

from __future__ import annotations

import codecs

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.pickles.trace.cursor import Span
from cgpt_convert.sources.local import MemoryBytes, Source, read
from cgpt_convert.sources.unpack import SourceSlice

_TEXT_NBYTES = 64 << 20  # limit for bytes written as text, which are decoded in memory


def source_of(span: Span, source: Source, label: str) -> Source | None:
    """Return a pickle's byte string as a source; None for text that does not decode to bytes."""
    if span.form == "bytes":
        return SourceSlice(source, span.offset, span.nbytes, label)
    if span.nbytes > _TEXT_NBYTES:
        raise Unsupported(
            f"bytes written as a text of {span.nbytes:,} characters are too large to decode"
        )
    data = span.head if span.nbytes <= len(span.head) else read(source, span.offset, span.nbytes)
    try:
        if span.form == "quoted":
            return MemoryBytes(label, codecs.escape_decode(data[1:-1])[0])
        if span.form == "escaped":
            return MemoryBytes(label, data.decode("raw-unicode-escape").encode("latin-1"))
        return MemoryBytes(label, data.decode("utf-8", "surrogateescape").encode("latin-1"))
    except ValueError:
        return None

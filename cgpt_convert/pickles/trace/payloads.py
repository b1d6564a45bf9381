"""Opcodes for text and bytes in the tracer, which record byte strings that look like files."""

from __future__ import annotations

from cgpt_convert.pickles.nodes import Value
from cgpt_convert.pickles.trace.cursor import OpcodeReader, Span
from cgpt_convert.pickles.trace.trace_stack import DROPPED, SHOWN, TraceLimitReached, TraceStack

_NESTED = 10_000  # byte strings that look like files
_PER_OPCODE = 128  # characters copied in the time of one opcode
_SHORTEST = 3  # shortest pickle with a PROTO opcode
_FILES = (b"PK\3\4", b"\x93NUMPY", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


class PayloadStack(TraceStack):
    """A stack that records pushed text and bytes for inspection."""

    def __init__(self, opcodes: OpcodeReader) -> None:
        super().__init__(opcodes)
        self.nested: dict[tuple[int, bytes], Span] = {}

    def text(self, value: Value) -> None:
        """Push text, if the limit allows it."""
        if isinstance(value, str):
            self.room[2] -= len(value)
            if value[:1] == "\x80":
                self.nest(_written(value))
            self.stack.append(value if self.room[2] > 0 else DROPPED)
        else:
            self.span(value)

    def span(self, value: Value) -> None:
        """Push bytes or text; record those that look like a file."""
        if isinstance(value, Span):
            if value.nbytes >= _SHORTEST and _is_file(value):
                self.nest(value)
        elif isinstance(value, str) and value[:1] == "\x80":
            self.nest(_written(value))
        self.stack.append(value)

    def nest(self, span: Span) -> None:
        """Record a byte string for inspection."""
        if len(self.nested) == _NESTED:
            raise TraceLimitReached(f"more than {_NESTED:,} byte strings that look like files")
        self.nested[span.offset, span.head] = span

    def into_call(self, args: tuple[Value, ...]) -> None:
        """Record the byte strings passed to a call, which may load them."""
        for value in args[:SHOWN]:
            if isinstance(value, Span):
                self.nest(value)
            elif isinstance(value, str) and len(value) > 1:
                self.extra += len(value) // _PER_OPCODE
                self.nest(_written(value))


def _is_file(span: Span) -> bool:
    """Return whether the bytes begin like a pickle or a known container."""
    if span.form == "bytes":
        pickled = span.head[:1] == b"\x80" and span.head[1:2] <= b"\5"
        return pickled or span.head.startswith(_FILES)
    if span.form == "escaped":
        return span.head.startswith((b"\x80", b"\\u0080"))
    return span.head.startswith((b"\xc2\x80", b"'\\x80", b'"\\x80'))


def _written(value: str) -> Span:
    """Return a short text as a span that contains all of it."""
    data = value.encode("utf-8", "surrogateescape")
    return Span(-1, len(data), data, "utf-8")

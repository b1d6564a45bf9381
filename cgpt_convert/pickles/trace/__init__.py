"""Lenient tracing of pickles: the imports and calls that any unpickler would make."""

"""The lenient tracer: what any unpickler would import and call."""

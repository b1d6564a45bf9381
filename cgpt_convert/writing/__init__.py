"""Write planned files: streamed, checked and published atomically."""

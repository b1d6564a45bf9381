"""File plans to files: atomic, streamed, checked."""

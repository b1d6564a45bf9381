"""Writing: temporary siblings, checksums, threads, the rename."""

"""ZIP and tar archives, read and written without trusting their headers."""

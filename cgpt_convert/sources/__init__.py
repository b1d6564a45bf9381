"""Random-access bytes: local files, remote objects and compressed data."""

"""Digests, locks, provenance and comparisons of weights."""

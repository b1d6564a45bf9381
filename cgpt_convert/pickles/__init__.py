"""Pickles: decoding, tracing, and recognition of torch's call patterns, without importing torch."""

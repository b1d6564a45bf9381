"""Tensor file formats: detection, readers and writers."""

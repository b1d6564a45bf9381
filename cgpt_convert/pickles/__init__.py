"""Pickle bytes -> inert tree -> names and tensors. Knows torch's forms, not torch."""

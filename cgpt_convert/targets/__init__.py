"""Plan conversions: selected tensors, or whole models for other programs."""

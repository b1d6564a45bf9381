"""What a conversion writes: selected tensors, or whole models for other programs."""

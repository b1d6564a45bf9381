"""The decoded tree to named tensors."""

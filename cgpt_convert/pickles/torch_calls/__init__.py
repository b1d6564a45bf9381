"""The exact call patterns by which torch and NumPy write tensors."""

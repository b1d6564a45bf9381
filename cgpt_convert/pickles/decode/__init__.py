"""The strict decoder: pickle bytes to a tree of inert values."""

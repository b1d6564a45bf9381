"""Model folders for transformers."""

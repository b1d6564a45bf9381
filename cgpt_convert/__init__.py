"""PyTorch weight files: inspected, extracted and converted without torch, without running them."""

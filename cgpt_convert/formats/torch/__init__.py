"""PyTorch files: zip archive, legacy stream, tar."""

"""The forward pass of GPT-2."""

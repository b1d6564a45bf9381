"""The forward pass, and comparison of models by their logits."""

"""The forward pass, and models compared by their logits."""

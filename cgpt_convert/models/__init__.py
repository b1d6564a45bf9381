"""Forward passes: what a model computes from its weights, and text from that."""

"""Whole models for other programs: names, configuration and tokenizer beside the tensors."""

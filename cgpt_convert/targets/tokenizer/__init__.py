"""Tokenizer files, read for other programs' formats."""

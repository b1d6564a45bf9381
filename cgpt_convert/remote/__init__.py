"""Bytes that lie elsewhere: byte ranges of objects that URLs name. Imported only for a URL."""

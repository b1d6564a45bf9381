"""Readers of ZIP and tar archives that do not trust headers, and a ZIP writer."""

"""Errors, limits, findings, text and threads that every other package uses."""

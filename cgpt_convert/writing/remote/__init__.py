"""Uploads to object stores."""

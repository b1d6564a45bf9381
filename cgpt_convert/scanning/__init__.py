"""What loading files would run: every pickle in them is looked at, nothing is loaded."""

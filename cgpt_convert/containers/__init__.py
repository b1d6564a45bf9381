"""Files -> checkpoints: archives, streams, shards, what is left of cut-off files."""

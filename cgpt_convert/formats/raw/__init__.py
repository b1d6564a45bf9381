"""Raw storages with a mapping, as written by `extract`."""

"""Known architectures and models, read from the TOML files in `mappings/`."""

"""Known architectures and models, from the TOML files of `mappings/`."""

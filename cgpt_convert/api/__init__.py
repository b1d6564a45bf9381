"""The functions of `import cgpt_convert`. The package re-exports them; import them from there."""

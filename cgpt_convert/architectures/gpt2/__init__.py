"""GPT-2: its defaults, and a module for each feature that needs more than tensor names."""

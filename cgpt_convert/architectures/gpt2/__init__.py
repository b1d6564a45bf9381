"""GPT-2: its defaults, and what each feature that needs more than tensor names has to know."""

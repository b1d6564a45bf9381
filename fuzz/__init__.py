"""Coverage-guided fuzzing of the readers, by Atheris: `python -m fuzz TARGET`."""

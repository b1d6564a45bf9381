"""Sources behind URLs: HTTP, object stores and the Hugging Face Hub."""

"""Remote sources, given by URLs: HTTP, object stores and the Hugging Face Hub."""

"""GGUF files for llama.cpp, and GGUF back to transformers' names."""

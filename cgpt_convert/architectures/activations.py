"""The activation functions of GPT-2 models that are known here, under transformers' names."""

from __future__ import annotations

ERF, TANH = "erf", "tanh"
# transformers/activations.py `ACT2CLS`: names with one value are one function. quick_gelu and
# gelu_10 are others.
ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), ERF),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh"), TANH),
    "gelu_python_tanh": TANH,
}

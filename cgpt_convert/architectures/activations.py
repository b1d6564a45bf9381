"""The supported activation functions of GPT-2 models, under their transformers names."""

from __future__ import annotations

ERF, TANH = "erf", "tanh"
# transformers/activations.py `ACT2CLS`: names with the same value are the same function.
# quick_gelu and gelu_10 are different functions.
ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), ERF),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh"), TANH),
    "gelu_python_tanh": TANH,
}

"""What llama.cpp's library reads in a GGUF file."""

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize


def from_gguf(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a GGUF file as numbers, by the library's reader, as transformers has them."""
    top = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"}
    inner = {
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    }
    found: dict[str, torch.Tensor] = {}
    for tensor in GGUFReader(path).tensors:
        parts = tensor.name.split(".")
        data = np.array(tensor.data)
        if tensor.tensor_type not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            data = dequantize(data, tensor.tensor_type)
        value = torch.from_numpy(data)
        if parts[0] == "blk":
            name = f"h.{parts[1]}.{inner[parts[2]]}.{parts[3]}"
            value = value.t() if ".c_" in name and value.dim() == 2 else value
        else:
            name = f"{top[parts[0]]}.{parts[1]}"
        found["transformer." + name] = value
    return found

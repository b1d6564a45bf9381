"""A small GPT-2 with a byte-level vocabulary of its own, for the tests of GGUF."""

import json
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.helpers import vendor

SHAPE = vendor.SIZES["small"]
MERGES = ("h e", "l l", "Ġ w", "he ll")
END = "<|endoftext|>"
END_ID = 256 + len(MERGES)
IDS = (1, 2, 3, 40, 200, 259, 511, 7, 7, 0, 128, 300)  # 511 and 300 are unused tokens


def byte_characters() -> list[str]:
    """GPT-2's character for each byte: its own where it is printable, else one past U+0100."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte if byte in plain else 256 + others.index(byte)) for byte in range(256)]


def vocabulary():
    tokens = [*byte_characters(), *(merge.replace(" ", "") for merge in MERGES), END]
    return {token: number for number, token in enumerate(tokens)}


def write_tokenizer(folder: Path):
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *MERGES, "")))
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write(folder: Path, layout="cs", shape=SHAPE, **config):
    """Weights, config.json and tokenizer; the path of the weights."""
    path = vendor.write(shape, folder, layout)
    written = vendor.write_config(shape, folder, layout)
    ends = {"bos_token_id": END_ID, "eos_token_id": END_ID}
    written.write_text(json.dumps(json.loads(written.read_text()) | ends | config))
    write_tokenizer(folder)
    return path


class TableGelu(torch.nn.Module):
    """llama.cpp's: looked up by the float16 next to the input, the result float16 (ggml vec.h)."""

    def forward(self, x):
        return torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()


def transformers_logits(path: Path, act=None):
    """What transformers computes for IDS of the weights at `path`, with the tanh GELU or `act`."""
    state = torch.load(path, weights_only=True)
    kept = {
        "transformer." * (not name.startswith(("transformer.", "lm_head."))) + name: tensor
        for name, tensor in state.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    config = GPT2Config(**SHAPE._asdict(), activation_function="gelu_new")
    model = GPT2LMHeadModel(config).eval()
    missing, unexpected = model.load_state_dict(kept, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    for block in model.transformer.h if act else ():
        block.mlp.act = act
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()

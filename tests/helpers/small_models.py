"""Small random GPT-2 models of transformers', and the same weights in every kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.helpers import vendor
from tests.helpers.running import run


def oracle(folder: Path) -> Any:
    """Transformers' model of the vendor-shaped checkpoint that lies in `folder`."""
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    kept = {
        "transformer." * (not name.startswith(("transformer.", "lm_head."))) + name: tensor
        for name, tensor in state.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    content = json.loads((folder / "config.json").read_text())
    content |= {"bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(**content)).eval()
    missing, unexpected = model.load_state_dict(kept, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    if content.get("tie_word_embeddings", True):
        model.tie_weights()
    return model


def write(folder: Path, shape: vendor.Shape, layout: str = "cs", **config: object) -> Path:
    """A checkpoint with config.json, whose values are spread enough for every option to matter."""
    state = vendor.state_dict(shape, layout)
    for name, tensor in state.items():
        if name.endswith(".weight") and tensor.ndim == 2 and "wte" not in name:
            tensor.mul_(6)
    if "lm_head.weight" in state and config.get("tie_word_embeddings") is False:
        state["lm_head.weight"] = torch.randn(
            shape.vocab_size, shape.n_embd, generator=torch.Generator().manual_seed(1)
        )
    folder.mkdir(parents=True, exist_ok=True)
    vendor.save(state, folder / "pytorch_model.bin")
    path = vendor.write_config(shape, folder, layout)
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


KINDS = (
    *("bin", "legacy", "shards", "safetensors", "npz", "npy", "parameters", "by-name", "hf"),
    *("torch", "gguf"),
)


def as_kind(folder: Path, kind: str, out: Path) -> Path:
    """The checkpoint in `folder` as another kind of file, with its config.json beside it."""
    if kind == "bin":
        return folder / "pytorch_model.bin"
    out.mkdir()
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    model = folder / "pytorch_model.bin"
    if kind == "legacy":
        state = torch.load(model, weights_only=True)
        torch.save(state, out / "old.pt", _use_new_zipfile_serialization=False)
        return out / "old.pt"
    words: tuple[object, ...]
    if kind in ("parameters", "by-name"):
        by = "storage" if kind == "parameters" else "name"
        words = ("extract", model, "-o", out / "parameters", "--by", by)
    elif kind == "shards":
        words = ("convert", model, "-o", out / "m.bin", "--to", "torch", "--max-shard-size", "99kB")
    else:
        suffix = {"npy": "", "hf": "", "torch": ".pt"}.get(kind, f".{kind}")
        more = ("--no-vocab",) if kind == "gguf" else ()
        words = ("convert", model, "-o", out / f"m{suffix}", "--to", kind, *more)
    done = run(*words)
    assert done.code == 0, done.err
    written = [path for path in out.iterdir() if path.name != "config.json"]
    if kind == "shards":
        return next(path for path in written if path.name.endswith(".index.json"))
    return written[0]


def logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """Transformers' logits (b, t, vocabulary)."""
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(ids)).logits.numpy()
    return found


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The greatest difference, relative to the greatest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())

"""Folders as people have them: nothing in them raises an alarm."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from tests.helpers.running import run
from tests.helpers.scan_files import WEIGHTS, npy
from tests.scanning.test_code import CHAT, gguf
from tests.scanning.test_msgpack_weights import FLAX, packed
from tests.scanning.test_onnx_model import PLAIN


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))
        )

    size = struct.pack(">2L5B", 1, 1, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_repository_of_a_model_passes(tmp_path: Path) -> None:
    weights = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    torch.save(
        {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        tmp_path / "optimizer.pt",
    )
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    index = {
        "metadata": {"total_size": 56},
        "weight_map": dict.fromkeys(WEIGHTS, "model.safetensors"),
    }
    documents = {
        "config.json": {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "auto_map": None,
        },
        "generation_config.json": {"_from_model_config": True, "eos_token_id": 50256},
        "tokenizer_config.json": {"chat_template": CHAT, "tokenizer_class": "GPT2Tokenizer"},
        "tokenizer.json": {"model": {"type": "BPE", "vocab": {"a": 0, "\u0120b": 1}, "merges": []}},
        "special_tokens_map.json": {"eos_token": "</s>"},
        "model.safetensors.index.json": index,
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet"],
        },
        "adapter_config.json": {"auto_mapping": None, "peft_type": "LORA", "r": 8},
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
        ],
    }
    for name, value in documents.items():
        (tmp_path / name).write_text(json.dumps(value, indent=2))
    files = {
        "README.md": b"---\nlicense: mit\n---\n# A model\n",
        ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
        "merges.txt": b"#version: 0.2\nt h\nth e\n",
        "vocab.txt": b"[PAD]\n[UNK]\ncat\nimport\nsympy\n",
        "chat_template.jinja": CHAT.encode(),
        "modeling_x.py": b"import torch\n\nclass Model(torch.nn.Module):\n    pass\n",
        "tokenizer.model": b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2\n\x0c\n\3<s>\x15\0\0\0\0\x18\3",
        "assets/plot.png": png(),
        "model.gguf": gguf(CHAT),
        "onnx/model.onnx": PLAIN["a sum"],
        "flax_model.msgpack": packed(FLAX["nested"]),
        "positions.npy": npy(torch.arange(4).numpy()),
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    result = run("scan", tmp_path)
    assert result.code == 0, result.out


@pytest.mark.filterwarnings("ignore")
def test_a_distributed_checkpoint_passes(tmp_path: Path) -> None:
    state = {"model": WEIGHTS, "step": 3, "name": "run 1"}
    dcp.save(  # type: ignore[attr-defined]
        state, checkpoint_id=tmp_path / "checkpoint", no_dist=True
    )
    names = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert names == {".metadata", "__0_0.distcp"}
    result = run("scan", tmp_path)
    assert (result.code, result.out.splitlines()[-1]) == (0, "2 files, both clean"), result.out

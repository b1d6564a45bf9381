"""Folders as people have them: nothing in them raises an alarm."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from tests.helpers.running import run
from tests.helpers.scan_files import BAD, WEIGHTS, npy, zipped
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


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def test_the_objects_of_a_git_repository_pass(tmp_path: Path) -> None:
    """Loose blobs, trees, commits and tags, as Git writes them; no unpickler imports from one."""
    git(tmp_path, "init")
    (tmp_path / "numbers").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "archive").write_bytes(zipped({"a": b"x"}))
    (tmp_path / "note").write_bytes(BAD)
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "-m", "x")
    git(tmp_path, "tag", "-a", "v1", "-m", "x")
    (tmp_path / "note").unlink()  # what Git writes from its objects is scanned
    objects = [each for each in (tmp_path / ".git" / "objects").glob("??/*") if each.is_file()]
    kinds = {zlib.decompress(each.read_bytes()).partition(b" ")[0] for each in objects}
    assert kinds == {b"blob", b"tree", b"commit", b"tag"}
    for each in objects:
        with pytest.raises((pickle.UnpicklingError, IndexError, ModuleNotFoundError, ValueError)):
            pickle.loads(zlib.decompress(each.read_bytes()))
    done = run("scan", tmp_path)
    assert done.code == 0, done.out
    git(tmp_path, "checkout", "note")
    assert run("scan", tmp_path).code == 1


@pytest.mark.parametrize("head", [b"blob 4\0", b"blob 06\0", b"bolb 5\0", b"blob five\0", b""])
def test_what_only_resembles_a_git_object_is_scanned(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(zlib.compress(head + b"\xf0\xf1\xf2\xf3\xf4"))
    assert run("scan", tmp_path).code == 3
    (tmp_path / "x").write_bytes(zlib.compress(b"blob 5\0\xf0\xf1\xf2\xf3\xf4"))
    assert run("scan", tmp_path).code == 0


def test_a_virtual_environment_in_a_repository_passes(tmp_path: Path) -> None:
    venv = [sys.executable, "-m", "venv", "--without-pip", "--copies", str(tmp_path / ".venv")]
    subprocess.run(venv, check=True)
    done = run("scan", tmp_path)
    assert done.code == 0, done.out
    (tmp_path / ".venv" / "pyvenv.cfg").unlink()
    assert run("scan", tmp_path).code == 3

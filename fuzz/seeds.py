"""Small files of every kind to begin with, by the libraries that write them.

`python -m fuzz.seeds TARGET FOLDER` writes those of a target to a new folder.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.torch
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from tests.formats.torch import test_tar_reader


def seeds(target: str) -> list[bytes]:
    """The files that fuzzing `target` begins with."""
    made = {
        "archive": _archives,
        "cut-archive": _archives,
        "unpickler": _pickles,
        "tracer": _pickles,
        "legacy": lambda: [_stream()],
        "cut-legacy": lambda: [_stream(), _stream()[:-1]],
        "tar": lambda: [test_tar_reader.tar(test_tar_reader.PARTS)],
        "safetensors": lambda: [
            safetensors.torch.save({"a": torch.ones(2, 3), "b": torch.ones(4).half()}),
            safetensors.torch.save({"e": torch.ones(0)}, {"format": "pt", "tied": "e"}),
        ],
        "gguf": lambda: [_gguf()],
        "npy": lambda: [_npy(array) for array in _arrays().values()],
        "dcp": _dcp_metadata,
        "npz": lambda: [_npz(np.savez), _npz(np.savez_compressed)],
    }
    if target != "scan":
        return made[target]()
    return list(dict.fromkeys(seed for name in made for seed in seeds(name)))


def _dcp_metadata() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"model": {"w": torch.ones(3, 4)}, "step": 3}, checkpoint_id=folder, no_dist=True)
        return [(Path(folder) / ".metadata").read_bytes()]


def _state() -> dict[str, Any]:
    shared = torch.arange(12.0)
    return {
        "w": shared.view(3, 4).t(),
        "tied": shared[4:],
        "i": torch.ones(2, dtype=torch.int16),
        "s": torch.eye(2).to_sparse(),
        "step": 3,
        "groups": [{"lr": 0.1, "params": [0, 1]}],
    }


def _saved(value: object, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def _stream() -> bytes:
    return _saved(_state(), _use_new_zipfile_serialization=False)


def _archives() -> list[bytes]:
    saved = _saved(_state())
    deflated = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(deflated, "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return [saved, saved[: len(saved) * 2 // 3], deflated.getvalue()]


def _pickles() -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(_saved(_state()))) as archive:
        inside = archive.read("archive/data.pkl")
    plain = {"a": [1, -(2**40), 1.5, "é", b"x", None, True], "b": ({1, 2}, frozenset((3,)))}
    return [inside, *(pickle.dumps(plain, protocol) for protocol in range(6))]


def _arrays() -> dict[str, np.ndarray]:
    return {
        "f": np.ones((2, 3), "<f4"),
        "b": np.asfortranarray(np.ones((2, 3), ">i2")),
        "c": np.array(1j),
    }


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(save: Any) -> bytes:
    file = io.BytesIO()
    save(file, **_arrays())
    return file.getvalue()


def _gguf() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.gguf"
        writer = gguf.GGUFWriter(path, "gpt2")
        writer.add_uint32("gpt2.block_count", 1)
        writer.add_array("tokens", ["a", "bc"])
        writer.add_array("scores", [1.0, 2.0])
        writer.add_tensor("f", np.ones((2, 3), np.float32))
        blocks = np.zeros((2, 34), np.uint8)
        writer.add_tensor("q", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _plant(target: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    for seed in seeds(target):
        (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


if __name__ == "__main__":
    _plant(sys.argv[1], Path(sys.argv[2]))

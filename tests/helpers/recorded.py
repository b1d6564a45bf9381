"""python -m tests.helpers.recorded [OUT]: what torch, transformers and ggml made, for fast tests.

A small model as the vendor's files have it, and what others make of it. It lies in
tests/data/recorded; tests/helpers/test_recorded.py proves that it is still what they make.

cs/, hf/         the model as one file and as shards, each with its config.json
legacy.pt        the same tensors as torch before 1.6 wrote them
cs.safetensors   all tensors of cs/ as safetensors writes them; hf.safetensors: those of hf/
model.npz        the logits of IDS, what follows them by greedy search and by beams (no two
                 tokens in a row come twice), and their loss
values.npz       numbers, cast as torch casts them and quantized as ggml does
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "data" / "recorded"
IDS = [int(i) for i in np.arange(24) * 37 % 96]
CASTS = ("bfloat16", "float16")
BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


def numbers() -> np.ndarray:
    """4 x 96 float32 of many magnitudes, with what is special in the first row."""
    random = np.random.default_rng(5)
    values = random.standard_normal((4, 96)) * 10.0 ** random.integers(-6, 5, (4, 1))
    values[0, :8] = (0.0, -0.0, 1.0, -1.0, 65504.0, 3e-8, 1e-45, 448.0)
    return values.astype(np.float32)


def record(out: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from tests.helpers import vendor
    from tests.helpers.small_models import oracle, write

    shape = vendor.Shape(2, 32, 4, 64, 96, 32)
    write(out / "cs", shape)
    state = torch.load(out / "cs" / "pytorch_model.bin")
    save_file({name: t.clone().contiguous() for name, t in state.items()}, out / "cs.safetensors")
    torch.save(state, out / "legacy.pt", _use_new_zipfile_serialization=False)
    shards = vendor.state_dict(shape, "hf")
    save_file({name: t.contiguous() for name, t in shards.items()}, out / "hf.safetensors")
    vendor.write(shape, out / "hf", "hf", shards=True)
    vendor.write_config(shape, out / "hf", "hf")
    model = oracle(out / "cs").double()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        found = model(ids, labels=ids)
    search = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "pad_token_id": 0}
    search["no_repeat_ngram_size"] = 2
    after = {
        name: model.generate(ids, do_sample=False, num_beams=beams, **search)[0, len(IDS) :]
        for name, beams in (("greedy", 1), ("beams", 3))
    }
    tensors = {"logits": found.logits[0].float(), "loss": found.loss, **after}
    np.savez(out / "model.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    values: dict[str, Any] = _values()
    np.savez(out / "values.npz", **values)


def _values() -> dict[str, np.ndarray]:
    import torch

    from cgpt_convert.tensors.dtypes import BY_NAME
    from tests.tensors.test_quantize import ggml_blocks

    plain = torch.from_numpy(numbers())
    casts = {name: plain.to(getattr(torch, name)).view(torch.uint8).numpy() for name in CASTS}
    blocks = {name: np.frombuffer(ggml_blocks(numbers(), BY_NAME[name]), "u1") for name in BLOCKS}
    return casts | blocks


if __name__ == "__main__":
    record(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)

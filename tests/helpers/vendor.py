"""Checkpoints shaped as the vendor's: Cerebras-GPT's names, order, strides and storage numbers.

python -m tests.helpers.vendor SIZE OUT [--layout cs|hf] [--shards] [--config] [--seed N]

`cs` is what the vendor's converter wrote (111M to 6.7B): Conv1D weights are transposed views, the
causal masks uint8, `lm_head.weight` tied. `hf` is what transformers wrote (13B): contiguous
weights, another order, bool masks, names without `transformer.`, no `lm_head.weight`.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

State = Mapping[str, torch.Tensor]


class Shape(NamedTuple):
    """What the sizes of a model's tensors follow from, and the number of heads."""

    n_layer: int
    n_embd: int
    n_head: int
    n_inner: int
    vocab_size: int = 50257
    n_positions: int = 2048


TINY = Shape(2, 64, 4, 256, 256, 128)
SIZES = {
    "tiny": TINY,
    "small": Shape(3, 96, 6, 384, 512, 128),
    "111M": Shape(10, 768, 12, 3072),
    "256M": Shape(14, 1088, 17, 4352),
    "590M": Shape(18, 1536, 12, 6144),
    "1.3B": Shape(24, 2048, 16, 8192),
    "2.7B": Shape(32, 2560, 32, 10240),
    "6.7B": Shape(32, 4096, 32, 16384),
    "13B": Shape(40, 5120, 40, 20480),
}
LAYOUTS = ("cs", "hf")


def state_dict(shape: Shape, layout: str = "cs", seed: int = 0) -> OrderedDict[str, torch.Tensor]:
    """The tensors in the vendor's order, with seeded values that are spread as real weights are."""
    return OrderedDict(
        cs_tensors(Values(shape, seed)) if layout == "cs" else hf_tensors(Values(shape, seed))
    )


def split(state: State, shape: Shape) -> list[State]:
    """Two shards, cut inside a layer as the 13B's are: before its `mlp.c_proj.weight`."""
    at = list(state).index(f"h.{22 * shape.n_layer // 40}.mlp.c_proj.weight")
    items = list(state.items())
    return [dict(items[:at]), dict(items[at:])]


def save(state: State, path: Path) -> Path:
    """Write one archive. torch names the root folder `archive` when it is given a file object."""
    with path.open("wb") as file:
        torch.save(state, file)
    return path


def write(
    shape: Shape, folder: Path, layout: str = "cs", *, shards: bool = False, seed: int = 0
) -> Path:
    """Write the checkpoint into `folder`; the path of the file, or of the shards' index."""
    folder.mkdir(parents=True, exist_ok=True)
    state = state_dict(shape, layout, seed)
    if not shards:
        return save(state, folder / "pytorch_model.bin")
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(split(state, shape), 1):
        path = save(shard, folder / f"pytorch_model-{number:05}-of-00002.bin")
        weight_map |= dict.fromkeys(shard, path.name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    path = folder / "pytorch_model.bin.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n")
    return path


def write_config(shape: Shape, folder: Path, layout: str = "cs") -> Path:
    """Write config.json as the vendor's: there is no `n_ctx`, and 13B names a headless model."""
    config = {
        "activation_function": "gelu",
        "architectures": ["GPT2LMHeadModel" if layout == "cs" else "GPT2Model"],
        "attn_pdrop": 0.0,
        "bos_token_id": shape.vocab_size - 1,
        "embd_pdrop": 0.0,
        "eos_token_id": shape.vocab_size - 1,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_embd": shape.n_embd,
        "n_head": shape.n_head,
        "n_inner": shape.n_inner,
        "n_layer": shape.n_layer,
        "n_positions": shape.n_positions,
        "resid_pdrop": 0.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config, indent=2) + "\n")
    return path


Named = Iterator[tuple[str, torch.Tensor]]


class Values:
    """Seeded tensors of a shape's sizes. The stored order decides which values a tensor gets."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.random = torch.Generator().manual_seed(seed)

    def normal(self, *sizes: int, mean: float = 0.0, deviation: float = 0.02) -> torch.Tensor:
        return torch.empty(sizes).normal_(mean, deviation, generator=self.random)

    def norm(self, name: str) -> Named:
        yield f"{name}.weight", self.normal(self.shape.n_embd, mean=1.0, deviation=0.1)
        yield f"{name}.bias", self.normal(self.shape.n_embd)

    def conv(self, name: str, inputs: int, outputs: int, *, transposed: bool) -> Named:
        """A Conv1D, whose weight is (inputs, outputs) however it lies in memory."""
        weight = self.normal(outputs, inputs)
        yield f"{name}.weight", weight.t() if transposed else weight.t().contiguous()
        yield f"{name}.bias", self.normal(outputs)

    def masks(self, name: str, dtype: torch.dtype) -> Named:
        size = self.shape.n_positions
        yield f"{name}.bias", torch.ones(size, size).tril().to(dtype).view(1, 1, size, size)
        yield f"{name}.masked_bias", torch.tensor(-1e4)

    def embeddings(self, prefix: str) -> Named:
        yield f"{prefix}wte.weight", self.normal(self.shape.vocab_size, self.shape.n_embd)
        yield f"{prefix}wpe.weight", self.normal(self.shape.n_positions, self.shape.n_embd)


def cs_tensors(values: Values) -> Named:
    shape = values.shape
    wide, inner = shape.n_embd, shape.n_inner
    embeddings = dict(values.embeddings("transformer."))
    yield from embeddings.items()
    for layer in (f"transformer.h.{number}" for number in range(shape.n_layer)):
        yield from values.conv(f"{layer}.attn.c_attn", wide, 3 * wide, transposed=True)
        yield from values.masks(f"{layer}.attn", torch.uint8)
        yield from values.conv(f"{layer}.attn.c_proj", wide, wide, transposed=True)
        yield from values.norm(f"{layer}.ln_1")
        yield from values.norm(f"{layer}.ln_2")
        yield from values.conv(f"{layer}.mlp.c_fc", wide, inner, transposed=True)
        yield from values.conv(f"{layer}.mlp.c_proj", inner, wide, transposed=True)
    yield from values.norm("transformer.ln_f")
    yield "lm_head.weight", embeddings["transformer.wte.weight"]


def hf_tensors(values: Values) -> Named:
    shape = values.shape
    wide, inner = shape.n_embd, shape.n_inner
    yield from values.embeddings("")
    for layer in (f"h.{number}" for number in range(shape.n_layer)):
        yield from values.norm(f"{layer}.ln_1")
        yield from values.masks(f"{layer}.attn", torch.bool)
        yield from values.conv(f"{layer}.attn.c_attn", wide, 3 * wide, transposed=False)
        yield from values.conv(f"{layer}.attn.c_proj", wide, wide, transposed=False)
        yield from values.norm(f"{layer}.ln_2")
        yield from values.conv(f"{layer}.mlp.c_fc", wide, inner, transposed=False)
        yield from values.conv(f"{layer}.mlp.c_proj", inner, wide, transposed=False)
    yield from values.norm("ln_f")


def main() -> None:
    """Write one checkpoint, from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.vendor", description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("out", type=Path, help="the folder to write into")
    parser.add_argument("--layout", choices=LAYOUTS, default="cs")
    parser.add_argument("--shards", action="store_true", help="two shards and an index; hf only")
    parser.add_argument("--config", action="store_true", help="config.json beside it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.shards and options.layout != "hf":
        parser.error("--shards needs --layout hf")
    shape = SIZES[options.size]
    write(shape, options.out, options.layout, shards=options.shards, seed=options.seed)
    if options.config:
        write_config(shape, options.out, options.layout)


if __name__ == "__main__":
    main()

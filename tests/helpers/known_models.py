"""The models that are known by name, as transformers makes them, for several test modules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from cgpt_convert.architectures.recognise import recognise
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.architectures.schema import architectures
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.torch.zip_reader import read
from cgpt_convert.sources.local import LocalFile, MemoryBytes
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor
from tests.helpers import vendor

GPT2 = architectures()["gpt2"]
HEAD = "lm_head.weight"
MEMORY = MemoryBytes("memory", b"")

SHAPES = {
    f"cerebras-gpt-{size.lower()}": shape
    for size, shape in vendor.SIZES.items()
    if size.endswith(("M", "B"))
}
# config.json of openai-community/gpt2, -medium, -large, -xl
SHAPES |= {
    "gpt2": vendor.Shape(12, 768, 12, 3072, n_positions=1024),
    "gpt2-medium": vendor.Shape(24, 1024, 16, 4096, n_positions=1024),
    "gpt2-large": vendor.Shape(36, 1280, 20, 5120, n_positions=1024),
    "gpt2-xl": vendor.Shape(48, 1600, 25, 6400, n_positions=1024),
}


def transformers_config(shape: vendor.Shape) -> GPT2Config:
    return GPT2Config(**shape._asdict())


@cache
def reference(name: str, *, headless: bool = False) -> Mapping[str, torch.Tensor]:
    """What transformers says the model's tensors are; they have shapes only."""
    with torch.device("meta"):
        config = transformers_config(SHAPES[name])
        model = GPT2Model(config) if headless else GPT2LMHeadModel(config)
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def bare(shapes: Mapping[str, tuple[int, ...]], dtype: str = "float32") -> dict[str, Tensor]:
    """Tensors of these shapes, each of a storage of its own, with no bytes at all."""
    return {
        name: Tensor(name, BY_NAME[dtype], shape, c_strides(shape), 0, Storage(MEMORY, 0, 0, name))
        for name, shape in shapes.items()
    }


def of_transformers(name: str, *, headless: bool = False) -> dict[str, Tensor]:
    state = reference(name, headless=headless)
    return bare({key: tuple(tensor.shape) for key, tensor in state.items()})


def small() -> dict[str, Tensor]:
    """cerebras-gpt-111m as transformers names it: 10 layers."""
    return of_transformers("cerebras-gpt-111m")


def known(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Recognised:
    found = recognise(tensors, config)
    assert found is not None
    return found


def opened(path: Path) -> Checkpoint:
    return read(LocalFile(path))

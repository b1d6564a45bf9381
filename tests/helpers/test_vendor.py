"""The test checkpoints agree with what strangers read out of the vendor's real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.torch.zip_reader import read
from cgpt_convert.sources.local import LocalFile
from tests.helpers import vendor

WILD = json.loads((Path(__file__).parents[1] / "data/wild_mappings.json").read_text())


def opened(path: Path) -> Checkpoint:
    return read(LocalFile(path))


def keys(checkpoint: Checkpoint) -> dict[str, str]:
    return {name: tensor.storage.key for name, tensor in checkpoint.items()}


def narrow(size: str) -> vendor.Shape:
    """As many layers as the real model, and little else."""
    return vendor.SIZES[size]._replace(
        n_embd=64, n_head=4, n_inner=256, vocab_size=99, n_positions=32
    )


def test_storage_numbers_of_111m_are_those_of_the_real_file(tmp_path: Path) -> None:
    found = keys(opened(vendor.write(narrow("111M"), tmp_path)))
    wild = WILD["CEREBRAS/111M"]
    assert {name: found[name] for name in wild} == wild
    unmapped = set(found) - set(wild)
    assert {name.rpartition(".")[2] for name in unmapped - {"lm_head.weight"}} == {
        "bias",
        "masked_bias",
    }
    assert found["lm_head.weight"] == found["transformer.wte.weight"]
    assert sorted(map(int, set(found.values()))) == list(range(144))


def test_storage_numbers_of_13b_are_those_of_the_real_shards(tmp_path: Path) -> None:
    index = json.loads(vendor.write(narrow("13B"), tmp_path, "hf", shards=True).read_text())
    files = sorted(set(index["weight_map"].values()))
    found: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        shard = opened(tmp_path / file)
        assert {name for name, at in index["weight_map"].items() if at == file} == set(shard)
        found |= {f"transformer.{name}": f"{number}/{key}" for name, key in keys(shard).items()}
    wild = WILD["CEREBRAS/13B"]
    assert {name: found[name] for name in wild} == wild
    assert [len(opened(tmp_path / file).storages) for file in files] == [322, 242]


@pytest.mark.parametrize(("size", "parameters"), [("111M", 111_050_496), ("13B", 12_853_386_240)])
def test_parameters_are_as_many_as_the_model_card_says(size: str, parameters: int) -> None:
    with torch.device("meta"):
        values = vendor.Values(vendor.SIZES[size], 0)
        values.random = torch.Generator("cpu")
        values.normal = lambda *sizes, **_: torch.empty(sizes)  # type: ignore[method-assign]
        state = dict(vendor.hf_tensors(values))
    masks = (".attn.bias", ".attn.masked_bias")  # `c_attn.bias` is none
    learned = [tensor for name, tensor in state.items() if not name.endswith(masks)]
    assert sum(tensor.numel() for tensor in learned) == parameters


def test_conv_weights_are_transposed_views_in_cs_and_contiguous_in_hf(tmp_path: Path) -> None:
    cs = opened(vendor.write(vendor.TINY, tmp_path / "cs"))["transformer.h.1.attn.c_attn.weight"]
    hf = opened(vendor.write(vendor.TINY, tmp_path / "hf", "hf"))["h.1.attn.c_attn.weight"]
    assert (cs.shape, cs.strides) == ((64, 192), (1, 64))
    assert (hf.shape, hf.strides) == ((64, 192), (192, 1))


def test_archive_root_is_archive(tmp_path: Path) -> None:
    assert opened(vendor.write(vendor.TINY, tmp_path)).root == "archive"


def test_same_seed_gives_the_same_values_and_another_seed_others() -> None:
    first, again, other = (vendor.state_dict(vendor.TINY, seed=seed) for seed in (1, 1, 2))
    name = "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_values_are_spread_as_real_weights_are() -> None:
    state = vendor.state_dict(vendor.SIZES["small"])
    weight, gain = state["transformer.wte.weight"], state["transformer.ln_f.weight"]
    assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(gain.mean()) == pytest.approx(1.0, rel=0.05)


def test_transformers_loads_the_checkpoint(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    vendor.write(vendor.TINY, tmp_path)
    vendor.write_config(vendor.TINY, tmp_path)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path).state_dict()
    name = "transformer.h.1.mlp.c_proj.weight"
    assert torch.equal(loaded[name], vendor.state_dict(vendor.TINY)[name])

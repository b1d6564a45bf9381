"""Tensors that are not one strided view, against what torch says of their parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cgpt_convert.checkpoint import Checkpoint
from tests.helpers import zips
from tests.helpers.torch_agreement import BASE, SPARSE, bits, ignore_deprecation, opened, raw


def dense_parts(checkpoint: Checkpoint, name: str) -> dict[str, bytes]:
    return {
        part.name.removeprefix(f"{name}."): bits(part) for part in checkpoint.exotic[name].parts
    }


def test_sparse_coo() -> None:
    value = SPARSE.to_sparse_coo()
    checkpoint = opened(zips.saved({"s": value}))
    exotic = checkpoint.exotic["s"]
    assert (exotic.kind, exotic.dtype, exotic.shape) == ("sparse_coo", "float32", (4, 4))
    assert dense_parts(checkpoint, "s") == {
        "indices": raw(value.indices()),
        "values": raw(value.values()),
    }
    assert not checkpoint.tensors


@ignore_deprecation
@pytest.mark.parametrize("layout", ["csr", "csc", "bsr", "bsc"])
def test_sparse_compressed(layout: str) -> None:
    block = ((2, 2),) if layout.startswith("b") else ()
    value = getattr(SPARSE, f"to_sparse_{layout}")(*block)
    checkpoint = opened(zips.saved({"s": value}))
    rows = layout.endswith("sr")
    names = ("crow_indices", "col_indices") if rows else ("ccol_indices", "row_indices")
    assert checkpoint.exotic["s"].kind == f"sparse_{layout}"
    assert dense_parts(checkpoint, "s") == {
        name: raw(getattr(value, name)()) for name in (*names, "values")
    }


@ignore_deprecation
def test_nested_strided() -> None:
    value = torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)])
    checkpoint = opened(zips.saved({"n": value}))
    parts = dense_parts(checkpoint, "n")
    assert checkpoint.exotic["n"].kind == "nested"
    assert parts["buffer"] == raw(torch.cat([torch.ones(6), torch.zeros(12)]))
    assert parts["sizes"] == raw(torch.tensor([[2, 3], [4, 3]]))


@ignore_deprecation
def test_nested_jagged() -> None:
    value = torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)], layout=torch.jagged)
    checkpoint = opened(zips.saved({"n": value}))
    found = [bits(tensor) for tensor in checkpoint.values()]
    assert raw(torch.cat([torch.ones(6), torch.zeros(12)])) in found


def test_meta_tensors_have_no_data() -> None:
    checkpoint = opened(zips.saved({"m": torch.empty(3, 4, device="meta", dtype=torch.half)}))
    exotic = checkpoint.exotic["m"]
    assert (exotic.kind, exotic.dtype, exotic.shape) == ("meta", "float16", (3, 4))
    assert exotic.parts == ()


@ignore_deprecation
@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32], ids=str)
def test_quantized_per_tensor(dtype: torch.dtype) -> None:
    value = torch.quantize_per_tensor(BASE, 0.5, 3, dtype)
    checkpoint = opened(zips.saved({"q": value.permute(2, 0, 1)}))
    assert f"torch.{checkpoint['q'].dtype.name}" == str(dtype)
    assert checkpoint["q"].quantizer == "torch.per_tensor_affine, 0.5, 3"
    assert bits(checkpoint["q"]) == raw(value.int_repr().permute(2, 0, 1))


@ignore_deprecation
def test_quantized_per_channel() -> None:
    scales, zeros = torch.rand(6, dtype=torch.float64) + 0.1, torch.arange(6)
    value = torch.quantize_per_channel(BASE, scales, zeros, 1, torch.qint8)
    checkpoint = opened(zips.saved({"q": value}))
    assert checkpoint.exotic["q"].kind == "quantized per_channel_affine"
    assert checkpoint.exotic["q"].detail == "torch.per_channel_affine, axis 1"
    assert dense_parts(checkpoint, "q") == {
        "values": raw(value.int_repr()),
        "scales": raw(scales),
        "zero_points": raw(zeros),
    }
    assert not checkpoint.findings


@ignore_deprecation
def test_quantized_below_a_byte() -> None:
    scales, zeros = torch.ones(5), torch.zeros(5)
    value = torch.quantize_per_channel(BASE.view(5, 42), scales, zeros, 0, torch.quint4x2)
    checkpoint = opened(zips.saved({"q": value}))
    assert checkpoint.exotic["q"].kind == "quint4x2"
    assert checkpoint.exotic["q"].shape == (5, 42)
    assert len(dense_parts(checkpoint, "q")["values"]) == 5 * 42 // 2


def test_parameters_of_lazy_modules_are_listed() -> None:
    """They have no values; leaving them out in silence would make the model another one."""
    module = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(2, 2))
    checkpoint = opened(zips.saved(module.state_dict()))
    assert list(checkpoint) == ["1.weight", "1.bias"]
    assert [each.kind for each in checkpoint.exotic.values()] == ["uninitialized"] * 2
    assert list(checkpoint.exotic) == ["0.weight", "0.bias"]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed part")
@ignore_deprecation
def test_distributed_tensors_are_listed_with_their_placements() -> None:
    store: Any = vars(torch.distributed)["HashStore"]()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",))
        value = torch.arange(12.0).view(4, 3)
        state = {
            "cut": distribute_tensor(value, mesh, [Shard(1)]),
            "whole": torch.nn.Parameter(distribute_tensor(value, mesh, [Replicate()])),
            "plain": torch.ones(2),
        }
        checkpoint = opened(zips.saved(state))
    finally:
        torch.distributed.destroy_process_group()
    cut, whole = checkpoint.exotic["cut"], checkpoint.exotic["whole"]
    assert (cut.kind, cut.dtype, cut.shape) == ("DTensor", "float32", (4, 3))
    assert cut.detail == "the shard of one rank; placements: Shard(dim=1)"
    assert whole.detail == "the shard of one rank; placements: Replicate()"
    assert bits(checkpoint["cut._local_tensor"]) == raw(value)
    assert bits(checkpoint["plain"]) == raw(torch.ones(2))

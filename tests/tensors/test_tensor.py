"""A tensor in the hands of NumPy and torch: conversion, basic indexing, casts by name."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cgpt_convert import BadRequest, Unsupported, convert, open_checkpoint
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.tensor import Storage, Tensor
from tests.helpers.running import environ

DTYPES = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 "
    "bool complex64 complex128"
)


def opened(state, tmp_path):
    torch.save(state, tmp_path / "model.bin")
    return open_checkpoint(tmp_path / "model.bin")


@pytest.mark.parametrize("dtype", DTYPES.split())
def test_torch_gets_the_same_bits(tmp_path, dtype):
    kind = getattr(torch, dtype)
    values = (torch.randn(6, 5) * 3).to(kind)
    state = {"w": values, "t": values.t(), "none": values[:0], "one": values[2, 3].clone()}
    checkpoint = opened(state, tmp_path)
    for name, expected in state.items():
        found = checkpoint[name].torch()
        assert (found.dtype, found.shape) == (kind, expected.shape)
        assert found.is_contiguous()
        same = found.view(torch.uint8) if found.dim() else found.reshape(1).view(torch.uint8)
        wanted = expected.contiguous()
        wanted = wanted.view(torch.uint8) if wanted.dim() else wanted.reshape(1).view(torch.uint8)
        assert torch.equal(same, wanted)


def test_torch_gets_its_own_memory(tmp_path):
    checkpoint = opened({"w": torch.zeros(3)}, tmp_path)
    one = checkpoint["w"].torch()
    one += 1
    assert torch.equal(checkpoint["w"].torch(), torch.zeros(3))


def test_torch_is_imported_by_torch_only(tmp_path):
    opened({"w": torch.zeros(3)}, tmp_path)
    code = (
        "import sys; from cgpt_convert import open_checkpoint;"
        "t = open_checkpoint('model.bin')['w'];"
        "import numpy; numpy.asarray(t[1:]); repr(t); assert 'torch' not in sys.modules;"
        "t.torch(); assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ(), check=True)


def test_without_torch_the_error_says_so(tmp_path, monkeypatch):
    checkpoint = opened({"w": torch.zeros(3)}, tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Unsupported, match="torch is not installed"):
        checkpoint["w"].torch()


@pytest.mark.parametrize("dtype", ["qint8", "bits8", "float4_e2m1fn_x2"])
def test_what_torch_has_no_dense_tensor_of_is_unsupported(dtype):
    storage = Storage(MemoryBytes("memory", bytes(4)), 0, 4, "0")
    with pytest.raises(Unsupported, match=dtype):
        Tensor("q", BY_NAME[dtype], (4,), (1,), 0, storage).torch()


def without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)


WIDENED = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e8m0fnu")


@pytest.mark.parametrize("dtype", WIDENED)
def test_asarray_gives_the_types_of_ml_dtypes(tmp_path, monkeypatch, dtype):
    values = (torch.randn(6, 5) * 3).to(getattr(torch, dtype))
    checkpoint = opened({"w": values, "t": values.t()}, tmp_path)
    expected = values.view(torch.uint16 if dtype == "bfloat16" else torch.uint8).numpy()
    for name, bits in ("w", expected), ("t", expected.T):
        found = np.asarray(checkpoint[name])
        assert found.dtype == getattr(ml_dtypes, dtype)
        assert np.array_equal(found.view(bits.dtype), bits)
        wide = np.asarray(checkpoint[name], dtype="float32")
        assert np.array_equal(wide, values.float().numpy() if name == "w" else values.t().float())
        assert checkpoint[name].numpy().dtype == np.float32
        again = convert({name: found}, tmp_path / f"{name}.safetensors")
        assert torch.equal(
            load_file(again.path)[name].view(torch.uint8),
            checkpoint[name].torch().view(torch.uint8),
        )
    without_ml_dtypes(monkeypatch)
    assert np.asarray(checkpoint["w"]).dtype == np.float32


@pytest.mark.parametrize("dtype", DTYPES.split())
def test_asarray_gives_the_values(tmp_path, monkeypatch, dtype):
    without_ml_dtypes(monkeypatch)
    values = (torch.randn(6, 5) * 3).to(getattr(torch, dtype))
    checkpoint = opened({"w": values}, tmp_path)
    found = np.asarray(checkpoint["w"])
    wide = dtype in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
    expected = (values.float() if wide else values).numpy()
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    if not dtype.startswith(("complex", "bool")):
        narrow = np.asarray(checkpoint["w"], dtype=np.float64)
        assert narrow.dtype == np.float64
        assert np.array_equal(narrow, expected.astype(np.float64))
    assert (np.asarray(checkpoint["w"][:0]).shape) == (0, 5)


def test_a_view_without_a_copy_is_impossible(tmp_path):
    checkpoint = opened({"w": torch.zeros(3)}, tmp_path)
    with pytest.raises(ValueError, match="without a copy"):
        checkpoint["w"].__array__(copy=False)


SLICES = st.builds(
    slice,
    st.none() | st.integers(-7, 7),
    st.none() | st.integers(-7, 7),
    st.none() | st.integers(1, 4),
)
ITEMS = st.integers(-7, 7) | SLICES | st.just(...)


@given(st.lists(ITEMS, max_size=4).map(tuple) | ITEMS, st.booleans())
def test_indexing_is_numpys(index, turned):
    array = np.arange(5 * 4 * 3, dtype="<i4").reshape(5, 4, 3)
    storage = Storage(MemoryBytes("memory", array.tobytes()), 0, array.nbytes, "0")
    tensor = Tensor("w", BY_NAME["int32"], (5, 4, 3), (12, 3, 1), 0, storage)
    if turned:
        tensor, array = tensor.transposed(), array.T
    try:
        expected = array[index]
    except IndexError:
        with pytest.raises(IndexError):
            _ = tensor[index]
        return
    found = tensor[index]
    assert found.shape == expected.shape
    assert np.array_equal(np.asarray(found), expected)
    if found.shape:
        again = found[::2]
        assert np.array_equal(np.asarray(again), expected[::2])


@pytest.mark.parametrize("index", [1.5, "a", True, [0, 1], None])
def test_other_indices_are_type_errors(tmp_path, index):
    checkpoint = opened({"w": torch.zeros(3)}, tmp_path)
    with pytest.raises(TypeError):
        _ = checkpoint["w"][index]


def test_a_negative_step_is_rejected(tmp_path):
    checkpoint = opened({"w": torch.zeros(3)}, tmp_path)
    with pytest.raises(BadRequest, match="negative step"):
        _ = checkpoint["w"][::-1]


class Counting(MemoryBytes):
    """Bytes in memory that count how many of them are read."""

    nread = 0

    def readinto(self, offset, buffer):
        self.nread += len(buffer)
        super().readinto(offset, buffer)


def test_only_the_rows_of_a_slice_are_read():
    values = np.arange(10_000, dtype="<f4").reshape(1000, 10)
    source = Counting("memory", values.tobytes())
    tensor = Tensor(
        "w", BY_NAME["float32"], (1000, 10), (10, 1), 0, Storage(source, 0, 40_000, "0")
    )
    rows = tensor[10:20]
    assert source.nread == 0
    assert np.array_equal(np.asarray(rows), values[10:20])
    assert source.nread == 10 * 10 * 4
    assert torch.equal(rows.cast("bfloat16").torch(), torch.from_numpy(values[10:20]).bfloat16())
    assert source.nread == 2 * 10 * 10 * 4


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_cast_by_name_is_torchs(tmp_path, dtype):
    values = torch.randn(40, 7) * 100
    checkpoint = opened({"w": values}, tmp_path)
    assert torch.equal(checkpoint["w"].cast(dtype).torch(), values.to(getattr(torch, dtype)))
    assert f": {dtype} 40x7" in repr(checkpoint["w"].cast(dtype))


@pytest.mark.parametrize("dtype", ["float64", "int8", "keep", "brain"])
def test_a_cast_to_another_name_is_rejected(tmp_path, dtype):
    checkpoint = opened({"w": torch.zeros(3)}, tmp_path)
    with pytest.raises(BadRequest, match=dtype):
        checkpoint["w"].cast(dtype)


def test_blocks_are_not_split():
    values = np.random.default_rng(0).standard_normal((4, 64), "<f4")
    storage = Storage(MemoryBytes("memory", values.tobytes()), 0, values.nbytes, "0")
    tensor = Tensor("w", BY_NAME["float32"], (4, 64), (64, 1), 0, storage)
    data = b"".join(bytes(block) for block in tensor.cast("q8_0").blocks())
    stored = Storage(MemoryBytes("memory", data), 0, len(data), "0")
    packed = Tensor("w", BY_NAME["q8_0"], (4, 64), (64, 1), 0, stored)
    whole = np.asarray(packed.cast("float32"))
    assert np.abs(whole - values).max() < 0.05
    assert np.array_equal(np.asarray(packed.cast("float32")[1:3, 5:9]), whole[1:3, 5:9])
    rows = packed[1:3]
    assert (
        b"".join(bytes(block) for block in rows.blocks()) == data[len(data) // 4 : -len(data) // 4]
    )
    with pytest.raises(BadRequest, match="divides a block"):
        _ = packed[:, 5:9]
    with pytest.raises(Unsupported):
        packed.torch()


def is_open(path):
    links = Path("/proc/self/fd").iterdir()
    return path in {os.readlink(link) for link in links if link.is_symlink()}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_a_checkpoint_describes_itself_and_closes(tmp_path):
    one = torch.zeros(3, 2)
    save_file({"w": one}, tmp_path / "model.safetensors")
    gc.collect()  # files of other tests, since only a number of files stay open
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        path = str(tmp_path / "model.safetensors")
        assert repr(checkpoint) == f"<Checkpoint {path!r}: safetensors, 1 tensor, 24 bytes>"
        assert torch.equal(checkpoint["w"].torch(), one)
        assert is_open(path)
    assert not is_open(path)
    assert "2 tensors, 1 not dense, 24 bytes" in repr(
        opened({"w": one, "tied": one, "s": one.to_sparse()}, tmp_path)
    )

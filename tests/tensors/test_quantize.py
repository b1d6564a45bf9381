"""Blocks are those of ggml's own routines, bit for bit, however a tensor is cut and viewed."""

import ctypes

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgpt_convert.core.errors import BadRequest, Unsupported
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors import cast
from cgpt_convert.tensors.dtypes import BLOCK_CASTS, BY_NAME, FLOAT32
from cgpt_convert.tensors.read import CastCounts
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.stats import statistics
from cgpt_convert.tensors.tensor import Storage, Tensor, replace
from tests.helpers import llama_logits
from tests.helpers.render import dense, tensor_bytes

GGML = llama_logits.library()
NUMEL = 32 * 256
RANDOM = np.random.default_rng(7)


def float32(name, values, shape=None):
    array = np.ascontiguousarray(values, "<f4")
    return dense(name, "float32", shape or array.shape, array.tobytes())


def ggml_blocks(values, dtype):
    """What ggml's reference routine makes of float32 values."""
    values = np.ascontiguousarray(values, "<f4")
    out = np.empty(dtype.size(values.size), "u1")
    routine = getattr(GGML, f"quantize_row_{dtype.name}_ref")
    routine(*pointers(values, out), ctypes.c_int64(values.size))
    return out.tobytes()


def ggml_values(blocks, dtype):
    out = np.empty(len(blocks) // dtype.nbytes * dtype.block, "<f4")
    routine = getattr(GGML, f"dequantize_row_{dtype.name}")
    routine(*pointers(np.frombuffer(blocks, "u1"), out), ctypes.c_int64(out.size))
    return out


def pointers(*arrays):
    return [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]


def scaled(low, high):
    """Normal values, each block of another magnitude."""
    scales = np.repeat(10.0 ** RANDOM.uniform(low, high, NUMEL // 32), 32)
    return (np.clip(RANDOM.standard_normal(NUMEL), -3, 3) * scales).astype("<f4")


def finite_bits():
    values = RANDOM.integers(0, 1 << 32, NUMEL, dtype="<u4").view("<f4")
    return np.where(np.isfinite(values), values, np.float32(0))


def among(*values):
    return RANDOM.choice(np.array(values, "<f4"), NUMEL)


def ties():
    values = (RANDOM.integers(-254, 255, NUMEL) / 2).astype("<f4")
    values[::32] = 127  # so that q8_0's scale is 1
    return values


CASES = {
    "normal": scaled(-2, -1),
    "any bits": finite_bits(),
    "ties": ties(),
    "next to ties": among(0.49999997, 0.5, -0.5, 1.4999999, 1.5, -2.5, 127),
    "zeros of both signs": among(0.0, -0.0),
    "some zeros": among(0.0, -0.0, 1.0, 2.0),
    "plus or minus": among(1.0, -1.0),
    "constant blocks": np.repeat(scaled(-2, 0)[::32], 32),
    "scales that are subnormal": scaled(-45, -36),
    "scales that float16 has not": scaled(4, 37.9),
}


@pytest.fixture(params=BLOCK_CASTS)
def dtype(request):
    return BY_NAME[request.param]


@pytest.mark.parametrize("case", CASES)
def test_blocks_are_those_of_ggml(dtype, case):
    values = CASES[case]
    blocks = tensor_bytes(float32("w", values).cast(dtype))
    assert blocks == ggml_blocks(values, dtype)
    if "zeros" not in case:  # of which sign a zero scale is, gguf-py has its own opinion
        with np.errstate(all="ignore"):
            assert blocks == gguf_blocks(values, dtype)


def test_rows_of_the_table_are_those_of_gguf(dtype):
    kind = gguf.GGMLQuantizationType[dtype.name.upper()]
    assert (dtype.gguf, dtype.block, dtype.nbytes) == (kind, *gguf.GGML_QUANT_SIZES[kind])
    assert dtype.file_type == gguf.LlamaFileType[f"MOSTLY_{dtype.name.upper()}"]
    assert dtype.nbytes == 2 * (1 + dtype.codec.minimum) + dtype.block * dtype.codec.bits // 8


def test_the_codec_and_not_the_name_says_how_blocks_are_stored(dtype):
    other = dtype._replace(name="other")
    values = CASES["normal"]
    blocks = tensor_bytes(float32("w", values).cast(other))
    assert blocks == ggml_blocks(values, dtype)
    storage = dense("w", "uint8", (len(blocks),), blocks).storage
    tensor = Tensor("w", other, values.shape, c_strides(values.shape), 0, storage)
    decoded = np.frombuffer(tensor_bytes(tensor.cast(FLOAT32)), "<f4")
    assert decoded.tobytes() == ggml_values(blocks, dtype).tobytes()


def gguf_blocks(values, dtype):
    kind = gguf.GGMLQuantizationType[dtype.name.upper()]
    return gguf.quants.quantize(values.reshape(-1, 32), kind).tobytes()


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=32, max_size=32)
)
def test_any_block_is_that_of_ggml(block):
    for name in BLOCK_CASTS:
        blocks = tensor_bytes(float32("w", block).cast(BY_NAME[name]))
        assert blocks == ggml_blocks(block, BY_NAME[name])


def test_long_steps_beside_other_threads_give_the_same(dtype, monkeypatch):
    monkeypatch.setattr(cast, "_LARGE", 0)
    values = RANDOM.standard_normal((300, 3200)).astype("<f4")
    for turned in (False, True):
        tensor = float32("w", values.T.copy()).transposed() if turned else float32("w", values)
        pieces = [bytes(piece) for piece in tensor.cast(dtype).blocks(8 << 20, threads=2)]
        assert b"".join(pieces) == ggml_blocks(values, dtype)
        assert turned or len(pieces[0]) == dtype.size(256 << 10)


@pytest.mark.parametrize("max_bytes", [1, 1000, 4096, 100_000, 8 << 20])
@pytest.mark.parametrize("shape", [(3, 1, 64), (96, 96), (2, 5, 32), (257, 32), (32,), (0, 32)])
def test_any_block_size_gives_the_same(dtype, shape, max_bytes):
    values = RANDOM.standard_normal(shape).astype("<f4")
    pieces = [bytes(piece) for piece in float32("w", values).cast(dtype).blocks(max_bytes)]
    assert b"".join(pieces) == ggml_blocks(values, dtype)
    assert all(len(piece) % dtype.nbytes == 0 for piece in pieces)
    assert max(map(len, pieces), default=0) <= max(max_bytes, 32 * dtype.nbytes)


def test_a_transposed_view_is_quantized_along_its_own_rows(dtype):
    values = RANDOM.standard_normal((64, 704)).astype("<f4")
    turned = float32("w", values.T).transposed()
    assert tensor_bytes(turned.cast(dtype)) == ggml_blocks(values, dtype)


@pytest.mark.parametrize("stored", ["float64", "float16", "bfloat16", "float8_e4m3fn"])
def test_other_floats_are_widened_first(dtype, stored):
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    narrow = values.to(getattr(torch, stored))
    data = narrow.view(torch.uint8).numpy().tobytes()
    blocks = tensor_bytes(dense("w", stored, (4, 64), data).cast(dtype))
    assert blocks == ggml_blocks(narrow.to(torch.float32).numpy(), dtype)


def test_big_endian_values(dtype):
    values = RANDOM.standard_normal(64).astype("<f4")
    tensor = float32("w", values.byteswap())
    swapped = replace(tensor, storage=replace(tensor.storage, byteorder="big"))
    assert tensor_bytes(swapped.cast(dtype)) == ggml_blocks(values, dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_no_block_holds_is_refused(dtype, bad):
    values = np.ones(64, "<f4")
    values[40] = bad
    with pytest.raises(Unsupported, match=r"the\.name") as caught:
        tensor_bytes(float32("the.name", values).cast(dtype))
    assert "--dtype float16" in caught.value.hint


def test_what_scales_lose_is_counted(dtype):
    values = np.ones((3, 32), "<f4")
    values[1] *= 1e9
    values[2] *= 1e-12
    counts = CastCounts()
    list(float32("w", values).cast(dtype).blocks(counts=counts))
    assert counts == CastCounts(overflowed=32, zeroed=32)


def test_rows_must_be_whole_blocks(dtype):
    for shape in ((3, 33), (), (32, 1)):
        with pytest.raises(BadRequest, match="in blocks of 32 elements"):
            float32("w", np.zeros(shape)).cast(dtype)


def stored(values, dtype, shape=None):
    """A tensor of blocks in memory."""
    blocks = ggml_blocks(values, dtype)
    dims = shape or np.shape(values)
    storage = Storage(MemoryBytes("memory", blocks), 0, len(blocks), "w")
    return Tensor("w", dtype, dims, c_strides(dims), 0, storage)


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_ggml(dtype, case):
    tensor = stored(CASES[case], dtype)
    values = np.frombuffer(tensor_bytes(tensor.cast(FLOAT32)), "<u4")
    with np.errstate(all="ignore"):
        expected = ggml_values(ggml_blocks(CASES[case], dtype), dtype)
    assert (values == expected.view("<u4")).all()


def test_blocks_are_streamed_as_they_are(dtype):
    tensor = stored(CASES["normal"], dtype, (64, NUMEL // 64))
    assert tensor.nbytes == dtype.nbytes * NUMEL // 32
    assert tensor.extent() is not None
    assert tensor_bytes(tensor) == ggml_blocks(CASES["normal"], dtype)
    assert tensor.cast(FLOAT32).cast(dtype).extent() == tensor.extent()


@pytest.mark.parametrize("max_bytes", [1, 100, 8 << 20])
def test_any_view_of_blocks_can_be_read_as_numbers(dtype, max_bytes):
    shape = (6, 4, 64)
    values = CASES["normal"][: 6 * 4 * 64].reshape(shape)
    whole = stored(values, dtype)
    expected = ggml_values(ggml_blocks(values, dtype), dtype).reshape(shape)
    turned = whole.cast(FLOAT32).transposed()
    found = b"".join(bytes(block) for block in turned.blocks(max_bytes))
    assert found == np.ascontiguousarray(expected.T).tobytes()
    assert (turned.numpy() == expected.T).all()
    part = replace(whole.cast(FLOAT32), shape=(3, 5), strides=(256, 7), start=33)
    flat = expected.reshape(-1)
    wanted = [[flat[33 + 256 * i + 7 * j] for j in range(5)] for i in range(3)]
    assert (part.numpy() == np.array(wanted, "<f4")).all()


def test_a_view_of_blocks_is_not_written_as_blocks(dtype):
    turned = stored(np.zeros((32, 64)), dtype).transposed()
    with pytest.raises(Unsupported, match="does not consist of whole blocks"):
        tensor_bytes(turned)


def test_blocks_are_requantized_by_way_of_their_values():
    tensor = stored(CASES["normal"], BY_NAME["q8_0"])
    values = ggml_values(ggml_blocks(CASES["normal"], BY_NAME["q8_0"]), BY_NAME["q8_0"])
    assert tensor_bytes(tensor.cast(BY_NAME["q4_1"])) == ggml_blocks(values, BY_NAME["q4_1"])
    half = np.frombuffer(tensor_bytes(tensor.cast(BY_NAME["float16"])), "<f2")
    assert (half == values.astype("<f2")).all()


def test_statistics_are_of_the_values(dtype):
    tensor = stored(np.linspace(-1, 1, 64, dtype="<f4"), dtype)
    found = statistics(tensor)
    assert found["max"] == pytest.approx(1, abs=0.1)
    assert found["nan"] == 0


def test_a_scalar_type_is_no_block_type():
    with pytest.raises(BadRequest, match="cannot be cast"):
        dense("w", "int8", (32,), bytes(32)).cast(BY_NAME["q8_0"])

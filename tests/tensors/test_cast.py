"""Casts of floating-point types, bit for bit against torch."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt_convert.core.errors import BadRequest, Unsupported
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors import cast
from cgpt_convert.tensors.dtypes import BY_NAME, CASTS, TABLE
from cgpt_convert.tensors.read import CastCounts
from cgpt_convert.tensors.tensor import Storage, Tensor

FLOATS = [row.name for row in TABLE if row.is_float]
PAIRS = [(a, b) for a, b in itertools.product(FLOATS, CASTS) if a != b]


def tensor_of(words, stored):
    data = words.tobytes()
    return Tensor(
        "t",
        BY_NAME[stored],
        words.shape,
        (1,),
        0,
        Storage(MemoryBytes("m", data), 0, len(data), "0"),
    )


def converted(words, stored, target, counts=None, max_bytes=8 << 20):
    """The result's bit patterns."""
    size = BY_NAME[target].nbytes
    result = bytearray()
    for block in tensor_of(words, stored).cast(BY_NAME[target]).blocks(max_bytes, counts):
        assert 0 < len(block) <= max(max_bytes, size)
        result += block
    return np.frombuffer(result, f"<u{size}")


def by_torch(words, stored, target):
    """The result's bit patterns, and where there is a NaN."""
    given = torch.frombuffer(bytearray(words.tobytes()), dtype=getattr(torch, stored))
    result = given.to(getattr(torch, target))
    bits = result.view(getattr(torch, f"uint{8 * result.itemsize}")).numpy()
    return bits, result.isnan().numpy()


def assert_as_torch(words, stored, target, max_bytes=8 << 20):
    want, nan = by_torch(words, stored, target)
    got = converted(words, stored, target, max_bytes=max_bytes)
    is_nan = torch.from_numpy(got.copy()).view(getattr(torch, target)).isnan().numpy()
    np.testing.assert_array_equal(is_nan, nan)
    np.testing.assert_array_equal(got[~nan], want[~nan])


def patterns(mantissa_bits, exponent_bits, dropped):
    """Each exponent and sign with the mantissas where rounding to fewer bits turns over."""
    mantissas = {0, 1, (1 << mantissa_bits) - 1}
    for bits in dropped:
        half = 1 << (bits - 1)
        for odd, near in itertools.product((0, 1, 2, 3), (-1, 0, 1)):
            mantissas.add((odd << bits) + half + near)
            mantissas.add((odd << bits) + near)
            mantissas.add((1 << mantissa_bits) - (odd << bits) - half + near)
    kept = sorted(m for m in mantissas if 0 <= m < 1 << mantissa_bits)
    exponents = np.arange(2 << exponent_bits, dtype=np.uint64) << np.uint64(mantissa_bits)
    return (exponents[:, None] | np.array(kept, np.uint64)).reshape(-1)


def float32_patterns():
    random = np.random.default_rng(1).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    return np.concatenate([patterns(23, 8, range(1, 24)).astype(np.uint32), random])


def float64_patterns():
    rng = np.random.default_rng(2)
    near = rng.uniform(-30, 20, 1 << 18)  # exponents that the 16-bit types have
    near = (2.0**near * rng.choice((-1, 1), near.size)).view(np.uint64)
    ties = float32_patterns()[: 1 << 17].view(np.float32).astype(np.float64).view(np.uint64)
    beside = np.concatenate([ties - np.uint64(1), ties, ties + np.uint64(1)])
    return np.concatenate([patterns(52, 11, (29, 42, 45)), near, beside])


INPUTS = {
    "float64": float64_patterns,
    "float32": float32_patterns,
    "float16": lambda: np.arange(1 << 16, dtype=np.uint16),
    "bfloat16": lambda: np.arange(1 << 16, dtype=np.uint16),
}


def all_patterns(stored):
    return INPUTS.get(stored, lambda: np.arange(256, dtype=np.uint8))()


pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in cast:RuntimeWarning:tests.*")


@pytest.mark.parametrize(("stored", "target"), PAIRS)
def test_every_pattern_is_cast_as_by_torch(stored, target):
    assert_as_torch(all_patterns(stored), stored, target)


@pytest.mark.parametrize(("stored", "target"), PAIRS)
def test_so_it_is_one_value_at_a_time(stored, target):
    words = all_patterns(stored)
    assert_as_torch(words[:: max(len(words) // 500, 1)], stored, target, max_bytes=1)


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_values_in_range_take_the_fast_path(target):
    words = float32_patterns()
    values = np.abs(words.view(np.float32))
    assert_as_torch(words[values < cast.OVERFLOW], "float32", target)
    assert_as_torch(words[(values < cast.OVERFLOW) & (values > 1e-7)], "float32", target)


@pytest.mark.parametrize("name", [n for n in FLOATS if BY_NAME[n].nbytes == 1])
def test_float8_tables_are_torch_own(name):
    want, nan = by_torch(np.arange(256, dtype=np.uint8), name, "float32")
    got = cast.float8_values(name).view(np.uint32)
    np.testing.assert_array_equal(got[~nan], want[~nan])
    np.testing.assert_array_equal(np.isnan(cast.float8_values(name)), nan)


@pytest.mark.parametrize("lonely", [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7FC00000])
@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_a_single_nan_stays_one_and_changes_no_other(target, lonely):
    words = np.full(1000, 0.5, np.float32).view(np.uint32)
    words[617] = lonely
    assert_as_torch(words, "float32", target)


def naive_counts(words, stored, target):
    """By comparing all values before and after, both as float64."""
    given = torch.frombuffer(bytearray(words.tobytes()), dtype=getattr(torch, stored))
    after = given.to(getattr(torch, target)).to(torch.float64).numpy()
    before = given.to(torch.float64).numpy()
    overflowed = np.isfinite(before) & np.isinf(after)
    zeroed = (before != 0) & (after == 0)
    return CastCounts(int(overflowed.sum()), int(zeroed.sum()))


@pytest.mark.parametrize(("stored", "target"), PAIRS)
def test_losses_are_counted_exactly(stored, target):
    words = all_patterns(stored)
    counts = CastCounts()
    converted(words, stored, target, counts)
    assert counts == naive_counts(words, stored, target)


def test_counts_accumulate_over_blocks_and_tensors():
    words = np.array([1e6, 1e-9, 1.0, 0.0, np.inf, np.nan] * 10, np.float32).view(np.uint32)
    counts = CastCounts()
    converted(words, "float32", "float16", counts, max_bytes=8)
    converted(words, "float32", "float16", counts)
    assert counts == CastCounts(overflowed=20, zeroed=20)


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=40),
    target=st.sampled_from(("float16", "bfloat16")),
    max_bytes=st.sampled_from((4, 12, 100)),
)
def test_any_mixture_in_a_block(words, target, max_bytes):
    words = np.array(words, np.uint32)
    counts = CastCounts()
    assert_as_torch(words, "float32", target, max_bytes)
    converted(words, "float32", target, counts, max_bytes)
    assert counts == naive_counts(words, "float32", target)


def test_blocks_that_grow_in_a_cast_stay_as_small_as_asked():
    assert_as_torch(np.arange(256, dtype=np.uint8), "float8_e5m2", "float32", max_bytes=100)


def test_views_are_cast_too():
    words = np.arange(600, dtype=np.float32).view(np.uint32)
    tensor = tensor_of(words, "float32")
    view = Tensor("t", tensor.stored, (20, 30), (1, 20), 0, tensor.storage)
    want = torch.arange(600).reshape(30, 20).T.contiguous().to(torch.bfloat16)
    got = b"".join(map(bytes, view.cast(BY_NAME["bfloat16"]).blocks(70)))
    assert got == bytes(want.view(torch.uint8).numpy())


def test_casts_that_do_not_exist():
    tensor = tensor_of(np.zeros(1, np.uint32), "float32")
    with pytest.raises(BadRequest):
        tensor.cast(BY_NAME["int32"])
    with pytest.raises(Unsupported, match="float8_e5m2"):
        list(tensor.cast(BY_NAME["float8_e5m2"]).blocks())


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_long_steps_beside_other_threads_give_the_same(target, monkeypatch):
    monkeypatch.setattr(cast, "_LARGE", 0)
    values = np.random.default_rng(0).standard_normal(600_001).astype("<f4")
    tensor = tensor_of(values.view("<u4"), "float32").cast(BY_NAME[target])
    blocks = [bytes(block) for block in tensor.blocks(8 << 20, threads=2)]
    assert len(blocks[0]) == 2 * (256 << 10)
    want, _ = by_torch(values.view("<u4"), "float32", target)
    assert b"".join(blocks) == want.tobytes()


@pytest.mark.parametrize(
    ("numel", "max_bytes", "threads", "elements"),
    [
        (8 << 20, 8 << 20, 2, 256 << 10),
        ((8 << 20) - 1, 8 << 20, 2, 64 << 10),
        (8 << 20, 16 << 20, 1, 64 << 10),
        (8 << 20, 4 << 20, 4, 128 << 10),
        (8 << 20, 1 << 20, 16, 64 << 10),
    ],
)
def test_long_steps_are_for_large_tensors_and_stay_in_their_memory(
    numel, max_bytes, threads, elements
):
    assert cast.at_once(numel, max_bytes, threads) == elements

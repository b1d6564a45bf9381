"""Views -> bytes in C order, against torch.as_strided, within a bound on memory and on reads."""

import itertools
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors import gather, read, strided_copy
from cgpt_convert.tensors.dtypes import BY_NAME, TABLE
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor
from tests.helpers import torch_names

MiB = 1 << 20
ORACLE = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}
SINGLE = [row for row in TABLE if row.block == 1]  # test_quantize.py has the others
BY_NBYTES = {nbytes: next(row for row in TABLE if row.nbytes == nbytes) for nbytes in ORACLE}


def storage_of(data, byteorder="little"):
    return Storage(MemoryBytes("memory", data), 0, len(data), "0", byteorder)


def joined(tensor, max_bytes=8 * MiB):
    """All blocks, each checked: not empty, not too long, whole elements."""
    parts = []
    for block in tensor.blocks(max_bytes):
        assert isinstance(block, memoryview)
        assert block.format == "B"
        assert 0 < len(block) <= max(max_bytes, tensor.dtype.nbytes)
        assert len(block) % tensor.dtype.nbytes == 0
        parts.append(bytes(block))
    return b"".join(parts)


def strided(data, nbytes, shape, strides, start):
    """What torch makes of the same view, as bytes."""
    if 0 in shape:
        return b""
    flat = torch.frombuffer(bytearray(data), dtype=ORACLE[nbytes])
    return torch.as_strided(flat, shape, strides, start).reshape(-1).numpy().tobytes()


def random_bytes(nbytes, seed=0):
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8).tobytes()


def finite_complex_bytes(nbytes, seed=0):
    """Bytes that stay the same through any complex copy: no NaN among them."""
    return random_bytes(nbytes, seed).translate(bytes(i & 0x3F for i in range(256)))


@st.composite
def any_views(draw):
    rank = draw(st.integers(0, 5))
    shape = tuple(draw(st.lists(st.sampled_from((1, 1, 2, 3, 4, 7)), min_size=rank, max_size=rank)))
    if draw(st.integers(0, 15)) == 0 and rank:
        shape = (*shape[:-1], 0)
    if draw(st.booleans()):  # a permuted, perhaps padded array; else whatever, overlaps included
        order = draw(st.permutations(range(rank)))
        steps = c_strides(tuple(shape[axis] + draw(st.integers(0, 2)) for axis in order))
        strides = tuple(steps[order.index(axis)] * (shape[axis] > 0) for axis in range(rank))
    else:
        sizes = st.sampled_from((0, 0, 1, 1, 2, 3, 5, 8, 40, 211))
        strides = tuple(draw(st.lists(sizes, min_size=rank, max_size=rank)))
    return shape, strides, draw(st.integers(0, 9))


@settings(max_examples=600, deadline=None)
@given(
    view=any_views(),
    nbytes=st.sampled_from(sorted(ORACLE)),
    max_bytes=st.sampled_from((1, 16, 37, 100, 1000, 8 * MiB)),
    sizes=st.sampled_from(((8 << 10, MiB, 64 << 10), (8, 64, 64), (0, 1, 16), (64, 16, 256))),
    run=st.sampled_from((1, 2, 64)),
)
def test_any_view_is_what_torch_makes_of_it(view, nbytes, max_bytes, sizes, run):
    shape, strides, start = view
    length = 0 if 0 in shape else strided_copy.span(shape, strides)
    data = finite_complex_bytes((start + length) * nbytes)
    tensor = Tensor("t", BY_NBYTES[nbytes], shape, strides, start, storage_of(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "GAP", sizes[0])
        patch.setattr(gather, "SPAN", sizes[1])
        patch.setattr(strided_copy, "TILE", sizes[2])
        patch.setattr(strided_copy, "LINES", sizes[2] // 16)
        patch.setattr(strided_copy, "RUN", run)
        assert joined(tensor, max_bytes) == strided(data, nbytes, shape, strides, start)


@pytest.mark.parametrize("max_bytes", [5000, 1 << 16, 8 * MiB])
@pytest.mark.parametrize("nbytes", sorted(ORACLE))
def test_a_conv1d_weight(nbytes, max_bytes):
    data = finite_complex_bytes(300 * 500 * nbytes)
    tensor = Tensor("t", BY_NBYTES[nbytes], (300, 500), (1, 300), 0, storage_of(data))
    assert joined(tensor, max_bytes) == strided(data, nbytes, (300, 500), (1, 300), 0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_every_permutation_of_a_convolution_kernel(order):
    data = random_bytes(40 * 30 * 3 * 5 * 4)
    steps = c_strides((40, 30, 3, 5))
    shape = tuple((40, 30, 3, 5)[axis] for axis in order)
    strides = tuple(steps[axis] for axis in order)
    tensor = Tensor("t", BY_NAME["float32"], shape, strides, 0, storage_of(data))
    for max_bytes in (700, 1 << 15, MiB):
        assert joined(tensor, max_bytes) == strided(data, 4, shape, strides, 0)


def test_sixty_four_dimensions():
    shape = (1,) * 30 + (2, 3, 2, 2) + (1,) * 29 + (5,)
    strides = (7,) * 30 + (1, 2, 60, 6) + (99,) * 29 + (12,)
    data = random_bytes(120 * 4)
    tensor = Tensor("t", BY_NAME["float32"], shape, strides, 0, storage_of(data))
    assert len(shape) == 64
    assert joined(tensor) == strided(data, 4, shape, strides, 0)


@pytest.mark.parametrize("row", SINGLE, ids=lambda row: row.name)
def test_every_type_is_moved_as_bits(row):
    data = random_bytes(6 * 4 * row.nbytes)
    elements = np.frombuffer(data, f"V{row.nbytes}").reshape(6, 4)
    whole = Tensor("t", row, (6, 4), (4, 1), 0, storage_of(data))
    assert joined(whole, 50) == data
    assert joined(whole.transposed(), 50) == elements.T.tobytes()
    assert joined(Tensor("t", row, (3, 2), (8, 2), 5, whole.storage)) == (
        elements.reshape(-1)[[5, 7, 13, 15, 21, 23]].tobytes()
    )


@pytest.mark.parametrize("row", SINGLE, ids=lambda row: row.name)
def test_big_endian_storages_come_little_endian(row):
    data = random_bytes(12 * row.nbytes)
    swapped = np.frombuffer(data, np.uint8).reshape(-1, row.swap_width)[:, ::-1].tobytes()
    tensor = Tensor("t", row, (3, 4), (4, 1), 0, storage_of(swapped, "big"))
    assert joined(tensor, 33) == data
    elements = np.frombuffer(data, f"V{row.nbytes}").reshape(3, 4)
    assert joined(tensor.transposed(), 33) == elements.T.tobytes()


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("name", ["complex32", "complex64", "complex128"])
def test_conjugate_and_negative_bits_of_complex_numbers(name, byteorder):
    row = BY_NAME[name]
    data = finite_complex_bytes(12 * row.nbytes)
    parts = np.frombuffer(data, f"<u{row.swap_width}")
    stored = (parts.byteswap() if byteorder == "big" else parts).tobytes()
    for conj, neg in itertools.product((False, True), repeat=2):
        want = np.frombuffer(data, f"<f{row.swap_width}").reshape(12, 2).copy()
        want[:, 1] *= -1 if conj else 1
        want *= -1 if neg else 1
        tensor = Tensor("t", row, (12,), (1,), 0, storage_of(stored, byteorder), conj=conj, neg=neg)
        assert joined(tensor) == want.tobytes()
        if name != "complex32":  # torch cannot do both to one
            lazy = torch.frombuffer(bytearray(data), dtype=getattr(torch, name))
            lazy = lazy.conj() if conj else lazy
            lazy = torch_names.neg_view(lazy) if neg else lazy
            assert joined(tensor) == lazy.resolve_conj().resolve_neg().numpy().tobytes()


NEGATED = [row.name for row in TABLE if row.nbytes > 1 and row.kind in "fi"] + ["int8", "uint8"]


@pytest.mark.parametrize("name", NEGATED)
def test_a_negative_bit(name):
    row = BY_NAME[name]
    data = bytes(row.nbytes) + finite_complex_bytes(20 * row.nbytes) + b"\x80" * row.nbytes
    tensor = Tensor("t", row, (22,), (1,), 0, storage_of(data), neg=True)
    want = -torch.frombuffer(bytearray(data), dtype=getattr(torch, name))
    assert joined(tensor) == bytes(want.view(torch.uint8).numpy())


@pytest.mark.parametrize("name", ["bool", "qint8", "float8_e4m3fnuz", "bits8"])
def test_a_negative_bit_where_torch_has_none_is_unsupported(name):
    tensor = Tensor("t", BY_NAME[name], (2,), (1,), 0, storage_of(b"ab"), neg=True)
    with pytest.raises(Unsupported, match=name):
        joined(tensor)


def test_lazy_bits_come_before_a_cast_and_after_the_byte_order():
    data = np.array([1.5, -2.0, 0.0], ">f4").tobytes()
    tensor = Tensor("t", BY_NAME["float32"], (3,), (1,), 0, storage_of(data, "big"), neg=True)
    result = joined(tensor.cast(BY_NAME["float16"]))
    assert np.frombuffer(result, "<f2").tolist() == [-1.5, 2.0, 0.0]


@pytest.mark.parametrize("row", [r for r in TABLE if r.numpy or r.is_float], ids=lambda r: r.name)
def test_array_is_what_torch_has(row):
    data = bytes(range(24)) * row.nbytes if row.kind != "b" else bytes([0, 1, 1, 0] * 6)
    given = torch.frombuffer(bytearray(data), dtype=getattr(torch, row.name))
    want = (given if row.numpy else given.to(torch.float32)).reshape(4, 6)
    tensor = Tensor("t", row, (4, 6), (6, 1), 0, storage_of(data))
    for got, expected in ((tensor.numpy(), want), (tensor.transposed().numpy(), want.T)):
        assert got.dtype == expected.numpy().dtype
        assert got.flags.c_contiguous
        assert got.flags.writeable
        np.testing.assert_array_equal(got, expected.numpy())


def test_array_of_a_cast_has_the_cast_values():
    data = np.array([1 + 2**-12, 1e38, 7.0], "<f4").tobytes()
    tensor = Tensor("t", BY_NAME["float32"], (3,), (1,), 0, storage_of(data))
    assert tensor.cast(BY_NAME["bfloat16"]).numpy().tolist() == [1.0, 0x96 * 2.0**119, 7.0]
    assert tensor.cast(BY_NAME["float16"]).numpy().tolist() == [1.0, math.inf, 7.0]


@pytest.mark.parametrize("name", ["bfloat16", "int32", "float8_e5m2"])
def test_array_of_several_blocks(name):
    row = BY_NAME[name]
    data = finite_complex_bytes(1000 * 900 * row.nbytes)
    given = torch.frombuffer(bytearray(data), dtype=getattr(torch, name)).reshape(1000, 900)
    want = (given if row.numpy else given.to(torch.float32)).numpy()
    tensor = Tensor("t", row, (1000, 900), (900, 1), 0, storage_of(data))
    assert len(list(tensor.blocks())) > 1
    np.testing.assert_array_equal(tensor.numpy(), want)
    np.testing.assert_array_equal(tensor.transposed().numpy(), want.T)


def test_array_of_nothing_and_of_a_scalar():
    empty = Tensor("t", BY_NAME["float32"], (3, 0), (1, 1), 77, storage_of(b""))
    assert empty.numpy().shape == (3, 0)
    assert joined(empty) == b""
    scalar = Tensor("t", BY_NAME["int16"], (), (), 1, storage_of(b"\0\0\5\0"))
    assert scalar.numpy() == 5
    assert scalar.numpy().shape == ()


@pytest.mark.parametrize("name", ["complex32", "qint8", "quint4x2", "bits16", "float4_e2m1fn_x2"])
def test_array_of_what_numpy_has_not_is_unsupported(name):
    tensor = Tensor("weight", BY_NAME[name], (1,), (1,), 0, storage_of(bytes(8)))
    with pytest.raises(Unsupported, match=f"weight.*{name}"):
        tensor.numpy()


def test_a_view_past_its_storage_is_malformed():
    for shape, strides in (((4, 2), (2, 1)), ((2, 4), (1, 2)), ((4, 2), (3, 1)), ((2, 2), (1, 99))):
        tensor = Tensor("t", BY_NAME["float32"], shape, strides, 1, storage_of(bytes(32)))
        with pytest.raises(Malformed, match="memory"):
            joined(tensor)


class Counted:
    """64 MiB of consecutive uint32, made as they are read."""

    name = "counted"
    nbytes = 64 * MiB

    def __init__(self, most_reads=1 << 20):
        self.most_reads = most_reads
        self.reads = self.bytes_read = 0

    def readinto(self, offset, buffer):
        self.reads += 1
        assert self.reads <= self.most_reads
        self.bytes_read += len(buffer)
        into = np.frombuffer(buffer, "<u4")
        for done in range(0, len(into), 1 << 14):
            part = into[done : done + (1 << 14)]
            part[:] = np.arange(offset // 4 + done, offset // 4 + done + len(part))

    def check_unchanged(self):
        pass


SIDE = 4096
LARGE = {  # shape, strides, start, most reads, most bytes read per stored byte
    "contiguous": ((SIDE, SIDE), (SIDE, 1), 0, 257, 1),
    "transposed": ((SIDE, SIDE), (1, SIDE), 0, 4 * SIDE, 1),
    "every other": ((SIDE * SIDE // 2,), (2,), 0, 257, 1),
    "columns": ((SIDE, 10), (SIDE, 1), 3, SIDE, 0.01),
    "a small part, transposed": ((768, 2304), (1, 768), 99, 1, 0.2),
    "heads": ((16, SIDE, SIDE // 16), (SIDE // 16, SIDE, 1), 0, 4 * SIDE, 1),
    "expanded": ((SIDE, SIDE), (0, 1), 0, 1100, 1),
    "expanded inside": ((SIDE, SIDE), (1, 0), 0, 257, 0.01),
    "windows": ((SIDE, SIDE), (1, 1), 0, 300, 1),
    "windows, transposed": ((512, SIDE, 4), (1, SIDE, 128), 0, 4 * SIDE, 1),
}


@pytest.fixture
def peak():
    """The most bytes in use since the test began; NumPy reports its arrays to tracemalloc."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("view", list(LARGE))
def test_memory_and_reads_are_bounded(view, peak):
    shape, strides, start, most_reads, most_read = LARGE[view]
    source = Counted(most_reads)
    storage = Storage(source, 0, source.nbytes, "0")
    tensor = Tensor("t", BY_NAME["int32"], shape, strides, start, storage)
    max_bytes = 8 * MiB
    done = 0
    for block in tensor.blocks(max_bytes):
        got = np.frombuffer(block, "<u4")
        first, last = (np.unravel_index(done + i, shape) for i in (0, len(got) - 1))
        assert got[0] == start + np.dot(first, strides)
        assert got[-1] == start + np.dot(last, strides)
        done += len(got)
    assert done == tensor.numel
    assert peak() < 3 * max_bytes + MiB
    assert source.bytes_read <= most_read * source.nbytes


def test_a_cast_takes_little_more_memory(peak):
    source = Counted()
    tensor = Tensor(
        "t", BY_NAME["float32"], (SIDE, SIDE), (1, SIDE), 0, Storage(source, 0, source.nbytes, "0")
    )
    cast = tensor.cast(BY_NAME["float16"])
    total = sum(len(block) for block in cast.blocks(8 * MiB, read.CastCounts()))
    assert total == cast.nbytes
    assert peak() < 25 * MiB


def in_a_new_process(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout.split()


CODE = """
import sys
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.sources.local import LocalFile
from cgpt_convert.tensors.tensor import Storage
from cgpt_convert.tensors.tensor import Tensor
file = LocalFile(sys.argv[1])
strides = tuple(map(int, sys.argv[2].split(",")))
storage = Storage(file, 0, file.nbytes, "")
tensor = Tensor("t", BY_NAME["float32"], (4096, 4096), strides, 0, storage)
total = sum(len(block) for block in tensor.blocks())
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(total, "numpy" in sys.modules, peak)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("strides", "numpy", "most"), [("4096,1", "False", 40), ("1,4096", "True", 100)]
)
def test_a_process_of_its_own_stays_small(tmp_path, strides, numpy, most):
    path = tmp_path / "zeros"
    with path.open("wb") as file:
        file.truncate(64 * MiB)
    total, imported, peak = in_a_new_process(CODE, str(path), strides)
    assert int(total) == 64 * MiB
    assert imported == numpy
    assert int(peak) < most * 1024

"""Tensors assembled from boxes of any shape equal what NumPy assembles."""

import itertools
import random
import time
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.sources.local import MemoryBytes, origins
from cgpt_convert.tensors.assembled import Box, assembled, regions
from cgpt_convert.tensors.checksums import compared, stored
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.tensor import Storage, Tensor, replace

FLOAT32 = BY_NAME["float32"]
Ints = tuple[int, ...]


def chunk(values: np.ndarray, label: str, *, crc: bool = False) -> Tensor:
    """The values as a tensor whose storage has the order of dimensions that `values` has."""
    order = sorted(range(values.ndim), key=lambda axis: -values.strides[axis])
    data = values.transpose(order).tobytes()
    strides = [0] * values.ndim
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= values.shape[axis]
    storage = Storage(
        MemoryBytes(label, data), 0, len(data), label, crc32=zlib.crc32(data) if crc else None
    )
    return Tensor(label, BY_NAME[values.dtype.name], values.shape, tuple(strides), 0, storage)


def box(at: Ints, tensor: Tensor, opened: Callable[[], Tensor] | None = None) -> Box:
    source = tensor.storage.source
    span = (0, tensor.nbytes)
    return Box(at, tensor.shape, tensor.name, source, span, opened or (lambda: tensor))


def divided(shape: Ints, rng: random.Random, cuts: int) -> list[tuple[Ints, Ints]]:
    """Offsets and sizes of boxes made by cutting one of them in two again and again."""
    parts = [((0,) * len(shape), shape)]
    for _ in range(cuts):
        at, size = parts.pop(rng.randrange(len(parts)))
        axes = [axis for axis, length in enumerate(size) if length > 1]
        if not axes:
            parts.append((at, size))
            continue
        axis = rng.choice(axes)
        cut = rng.randrange(1, size[axis])
        parts.append((at, (*size[:axis], cut, *size[axis + 1 :])))
        moved = (*at[:axis], at[axis] + cut, *at[axis + 1 :])
        parts.append((moved, (*size[:axis], size[axis] - cut, *size[axis + 1 :])))
    return parts


def slices(at: Ints, size: Ints) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(at, size, strict=True))


def of_array(values: np.ndarray, parts: Sequence[tuple[Ints, Ints]], rng: random.Random) -> Tensor:
    """The array, assembled from chunks that are stored in rows or columns."""
    boxes = []
    for number, (at, size) in enumerate(parts):
        part = values[slices(at, size)].copy(order="F" if rng.random() < 0.3 else "C")
        boxes.append(box(at, chunk(part, f"{number}")))
    rng.shuffle(boxes)
    return assembled("w", BY_NAME[values.dtype.name], values.shape, boxes, "run")


@pytest.mark.parametrize("seed", range(60))
def test_random_boxes_equal_the_array(seed: int) -> None:
    rng = random.Random(seed)
    rank = rng.randrange(5)
    shape = tuple(rng.choice([1, 2, 3, 5, 8]) for _ in range(rank))
    dtype = rng.choice(["float32", "uint8", "float16", "float64"])
    values = np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)
    tensor = of_array(values, divided(shape, rng, rng.randrange(8)), rng)
    assert np.array_equal(tensor.numpy(), values)
    assert b"".join(map(bytes, tensor.blocks(16))) == values.tobytes()
    assert np.array_equal(tensor.transposed().numpy(), values.T)
    if rank:
        step = rng.randrange(1, 3)
        assert np.array_equal(tensor[..., ::step].numpy(), values[..., ::step])
    data = values.tobytes()
    for _ in range(5):  # whatever part of the bytes is read, even of an element
        start = rng.randrange(len(data))
        end = rng.randrange(start, len(data)) + 1
        buffer = bytearray(end - start)
        tensor.storage.readinto(start, memoryview(buffer))
        assert bytes(buffer) == data[start:end]


def test_boxes_that_no_cuts_make_equal_the_array() -> None:
    pinwheel = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1))]
    parts = [*pinwheel, ((1, 1), (1, 1))]
    values = np.arange(9, dtype="float32").reshape(3, 3)
    assert np.array_equal(of_array(values, parts, random.Random(1)).numpy(), values)


def test_large_tensors_divided_by_columns_equal_the_array() -> None:
    values = np.random.default_rng(0).random((1100, 1300), dtype="float32")
    columns = [((0, at), (1100, min(163, 1300 - at))) for at in range(0, 1300, 163)]
    tensor = of_array(values, columns, random.Random(0))
    assert b"".join(map(bytes, tensor.blocks())) == values.tobytes()
    half = b"".join(map(bytes, tensor.cast("float16").blocks()))
    assert half == values.astype("float16").tobytes()


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (1, 5, 1, 2)])
def test_regions_are_consecutive(shape: Ints) -> None:
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    for first, end in itertools.combinations(range(numbers.size + 1), 2):
        parts = [numbers[slices(*part)].ravel() for part in regions(shape, first, end - first)]
        assert np.concatenate(parts).tolist() == list(range(first, end))


def quarters() -> list[Box]:
    values = np.zeros((2, 2), "float32")
    return [box(at, chunk(values, f"{at}")) for at in itertools.product((0, 2), repeat=2)]


def test_a_hole_is_named() -> None:
    first, second, _, last = quarters()
    with pytest.raises(
        Malformed, match=r"run\[w\]: the chunks have 12 of 16 elements; none has \[2:4, 0:2\]"
    ):
        assembled("w", FLOAT32, (4, 4), [first, second, last], "run")


def test_an_overlap_names_both_boxes() -> None:
    parts = quarters()
    more = box((1, 1), chunk(np.zeros((1, 1), "float32"), "more"))
    with pytest.raises(Malformed, match=r"overlap: \(0, 0\) \(\[0:2, 0:2\]\) and more"):
        assembled("w", FLOAT32, (4, 4), [*parts[:3], more], "run")


def test_a_box_outside_is_named() -> None:
    with pytest.raises(Malformed, match=r"\(0, 2\) \(\[0:2, 2:4\]\) is outside the shape 4x3"):
        assembled("w", FLOAT32, (4, 3), quarters(), "run")


def test_two_boxes_of_a_scalar_overlap() -> None:
    parts = [box((), chunk(np.zeros((), "float32"), name)) for name in "ab"]
    with pytest.raises(Malformed, match="two chunks"):
        assembled("w", FLOAT32, (), parts, "run")


def cells(sizes: Ints, count: int) -> list[Box]:
    """So many boxes of one element each, in rows of a matrix of these sizes."""
    tensor = chunk(np.zeros((1, 1), "float32"), "cell")
    return [box(divmod(number, sizes[1]), tensor) for number in range(count)]


def test_many_boxes_take_linear_time() -> None:
    start = time.process_time()
    assert assembled("w", FLOAT32, (150, 150), cells((150, 150), 22500), "run").numel == 22500
    wide = box((149, 148), chunk(np.zeros((1, 2), "float32"), "wide"))  # which makes it no grid
    with pytest.raises(Unsupported, match="22,499 chunks, too many to compare"):
        assembled("w", FLOAT32, (150, 150), [*cells((150, 150), 22498), wide], "run")
    wide = box((0, 2998), chunk(np.zeros((1, 2), "float32"), "wide"))
    assembled("w", FLOAT32, (1, 3000), [*cells((1, 3000), 2998), wide], "run")
    with pytest.raises(Malformed, match=r"the chunks have 2,999 of 3,000 elements$"):
        assembled("w", FLOAT32, (1, 3000), [*cells((1, 3000), 2997), wide], "run")
    assert time.process_time() - start < 10


def test_boxes_without_elements_are_skipped() -> None:
    empty = box((4, 0), chunk(np.zeros((0, 4), "float32"), "empty"))
    tensor = assembled("w", FLOAT32, (4, 4), [*quarters(), empty], "run")
    assert len(list(origins(tensor.storage.source))) == len(quarters())


def test_a_box_is_opened_when_it_is_read() -> None:
    opened: list[str] = []
    values = np.arange(4, dtype="float32")

    def of(name: str, part: np.ndarray) -> Callable[[], Tensor]:
        def tensor() -> Tensor:
            opened.append(name)
            return chunk(part, name)

        return tensor

    parts = [
        box((at,), chunk(values[at : at + 2], name), of(name, values[at : at + 2]))
        for at, name in ((0, "a"), (2, "b"))
    ]
    tensor = assembled("w", FLOAT32, (4,), parts, "run")
    assert opened == []
    assert tensor[2:].numpy().tolist() == [2, 3]
    assert opened == ["b"]
    assert tensor.numpy().tolist() == [0, 1, 2, 3]
    assert opened == ["b", "a"]


@pytest.mark.parametrize("view", [lambda t: t, Tensor.transposed, lambda t: t[1:3]])
def test_damaged_chunks_are_noticed_in_whatever_order_they_are_read(
    view: Callable[[Tensor], Tensor],
) -> None:
    sound = [chunk(np.ones((4, 2), "float32"), name, crc=True) for name in "ab"]
    wrong = replace(sound[1], storage=replace(sound[1].storage, crc32=1))
    for parts, fails in ((sound, False), ([sound[0], wrong], True)):
        boxes = [box((0, 2 * at), part) for at, part in enumerate(parts)]
        tensor = view(assembled("w", FLOAT32, (4, 4), boxes, "run"))
        assert stored([tensor.storage]) == [part.storage for part in parts]

        def read(tensor: Tensor = tensor) -> None:
            with compared([tensor], set()) as (watched,):
                assert np.array_equal(watched.numpy(), np.ones(tensor.shape, "float32"))

        if fails:
            with pytest.raises(Malformed, match="storage 'b' does not match its checksum"):
                read()
        else:
            read()

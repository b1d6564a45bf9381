"""Views -> bytes in C order, against NumPy's as_strided."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.tensor import Storage, Tensor
from tests.helpers.render import tensor_bytes

WHOLE = np.arange(5000, dtype="<i4")
STORAGE = Storage(MemoryBytes("memory", WHOLE.tobytes()), 0, WHOLE.nbytes, "0")


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, strides and offset of a view that lies inside WHOLE; strides of 0 among them."""
    shape = draw(st.lists(st.integers(0, 6), max_size=5).map(tuple))
    strides = tuple(draw(st.integers(0, 150)) for _ in shape)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True) if size)
    return shape, strides, draw(st.integers(0, len(WHOLE) - 1 - max(last, 0)))


@given(views())
def test_any_view_is_what_numpy_makes_of_it(
    view: tuple[tuple[int, ...], tuple[int, ...], int],
) -> None:
    shape, strides, offset = view
    expected = as_strided(WHOLE[offset:], shape, [stride * 4 for stride in strides])
    found = Tensor("w", BY_NAME["int32"], shape, strides, offset, STORAGE)
    assert tensor_bytes(found) == expected.tobytes()
    assert np.array_equal(found.numpy(), expected)

"""NumPy arrays and scalars inside a pickle."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import zips
from tests.helpers.torch_agreement import BASE, bits, opened

ARRAYS = [
    np.arange(12, dtype=code).reshape(3, 4)
    for code in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", ">f4", ">i8")
] + [
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(12.0).reshape(3, 4)[::2, 1:],
    np.array([True, False]),
    np.array(1 + 2j),
    np.zeros((0, 3), np.float32),
    np.array(5.0),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}-{a.shape}-{a.flags.fnc}")
def test_numpy_arrays(array: np.ndarray, protocol: int) -> None:
    checkpoint = opened(zips.saved({"a": array}, pickle_protocol=protocol))
    ours = checkpoint["a"]
    assert ours.shape == array.shape
    little = array.astype(array.dtype.newbyteorder("<"))
    assert bits(ours) == np.ascontiguousarray(little).tobytes()
    assert not checkpoint.findings


@pytest.mark.parametrize(
    "array",
    [
        np.array(["text", "more"]),
        np.array([{"any": "object"}, None], dtype=object),
        np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.array([b"bytes"]),
    ],
    ids=["text", "objects", "records", "dates", "bytes"],
)
def test_numpy_arrays_of_no_numbers_do_not_stop_the_others(array: np.ndarray) -> None:
    checkpoint = opened(zips.saved({"names": array, "w": BASE}))
    assert list(checkpoint) == ["w"]
    assert [leaf.path for leaf in checkpoint.others] == ["names"]


@pytest.mark.parametrize("code", ["f8", "f4", "f2", "i8", "i4", "u1", "?"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_scalars_are_numbers(code: str, protocol: int) -> None:
    scalar = np.dtype(code).type(1)
    [leaf] = opened(zips.saved({"loss": scalar}, pickle_protocol=protocol)).others
    assert (leaf.path, leaf.value) == ("loss", scalar.item())
    assert type(leaf.value) is type(scalar.item())

"""The helper that writes torch's files without torch writes what torch writes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import torch_save, zips

WHOLE = np.arange(24, dtype=np.float32)
VALUES: dict[str, Any] = {
    **{name: {"w": np.arange(4).astype(name)} for name in torch_save.STORAGES},
    "views": {
        "whole": WHOLE.reshape(4, 6),
        "transposed": WHOLE.reshape(4, 6).T,
        "part": WHOLE[5:11],
        "tied": WHOLE,
        "again": WHOLE,
    },
    "no dimensions": [np.array(2.5), np.zeros((0, 3)), np.zeros(0, np.int8)],
    "values beside them": {"step": 3, "a": {"b": [None, True, 1.5, "x" * 300]}, "w": np.ones(2)},
    "nothing": {},
}


def tensors(value: Any, seen: dict[int, torch.Tensor]) -> Any:
    """The same with torch's tensors; arrays of one memory share a storage, as here."""
    if isinstance(value, dict):
        return {key: tensors(item, seen) for key, item in value.items()}
    if isinstance(value, list):
        return [tensors(item, seen) for item in value]
    if not isinstance(value, np.ndarray):
        return value
    if id(value) not in seen:
        root = value
        while isinstance(root.base, np.ndarray):
            root = root.base
        if root is value:
            seen[id(value)] = torch.from_numpy(value)
        else:
            base = tensors(root, seen)
            start = value.__array_interface__["data"][0] - root.__array_interface__["data"][0]
            strides = [stride // value.itemsize for stride in value.strides]
            seen[id(value)] = base.as_strided(value.shape, strides, start // value.itemsize)
    return seen[id(value)]


@pytest.mark.parametrize("name", VALUES)
def test_every_record_is_that_of_torch(name: str) -> None:
    theirs = zips.entries_of(zips.saved(tensors(VALUES[name], {})))
    ours = zips.entries_of(torch_save.saved(VALUES[name]))
    for records in (theirs, ours):
        del records["archive/.data/serialization_id"]  # of the whole file, padding included
    assert list(ours) == list(theirs)
    assert ours == theirs


@pytest.mark.parametrize("protocol", [1, 3, 4, 5])
def test_so_it_is_in_other_protocols(protocol: int) -> None:
    value = VALUES["views"]
    theirs = zips.entries_of(zips.saved(tensors(value, {}), pickle_protocol=protocol))
    ours = zips.entries_of(torch_save.saved(value, protocol))
    assert ours["archive/data.pkl"] == theirs["archive/data.pkl"]


@pytest.mark.parametrize("name", VALUES)
def test_the_legacy_stream_is_that_of_torch(name: str) -> None:
    # torch names a storage by its address, here it has a number
    data = torch_save.saved_legacy(VALUES[name])
    found = torch.load(io.BytesIO(data))
    expected = tensors(VALUES[name], {})
    assert zips.saved(found) == zips.saved(expected)

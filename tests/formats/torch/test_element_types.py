"""Every element type, read by us and by torch.load."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cgpt_convert.tensors import dtypes
from tests.helpers import zips
from tests.helpers.torch_agreement import TYPES, bits, check, filled, ignore_deprecation, opened


@ignore_deprecation
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_element_type(dtype: torch.dtype) -> None:
    check({"m": filled(dtype, 3, 5), "empty": filled(dtype, 0, 4), "scalar": filled(dtype, 1)[0]})


NARROW = [row for row in dtypes.TABLE if row.kind == "f" and not row.numpy]


@pytest.mark.parametrize("dtype", [getattr(torch, row.name) for row in NARROW], ids=str)
def test_narrow_floats_are_widened_as_torch_widens_them(dtype: torch.dtype) -> None:
    value = filled(dtype, 300)
    ours = check({"w": value})["w"].numpy()
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, value.float().numpy())


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_new_types_come_over_untyped_storages(dtype: torch.dtype) -> None:
    checkpoint = check({"w": filled(dtype, 7)[2:5]})
    assert "torch._utils._rebuild_tensor_v3" in checkpoint.globals
    assert checkpoint["w"].storage.nbytes == 7 * checkpoint["w"].dtype.nbytes


@pytest.mark.parametrize("name", ["bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"])
def test_raw_bits(name: str) -> None:
    octets = torch.arange(6, dtype=torch.uint8)
    checkpoint = opened(zips.saved({"w": octets.view(getattr(torch, name))}))
    assert (checkpoint["w"].dtype.name, bits(checkpoint["w"])) == (name, bytes(range(6)))


def test_half_a_byte_each() -> None:
    octets = torch.arange(6, dtype=torch.uint8)
    checkpoint = opened(zips.saved({"w": octets.view(torch.float4_e2m1fn_x2)}))
    assert (checkpoint["w"].shape, bits(checkpoint["w"])) == ((6,), bytes(range(6)))

"""Casts are torch's and blocks are ggml's, as recorded of them."""

from __future__ import annotations

import numpy as np
import pytest

from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.tensor import Tensor
from tests.helpers.recorded import BLOCKS, CASTS, FOLDER, numbers
from tests.helpers.render import dense, tensor_bytes

VALUES = dict(np.load(FOLDER / "values.npz"))


def tensor() -> Tensor:
    return dense("w", "float32", (4, 96), numbers().tobytes())


@pytest.mark.parametrize("name", CASTS)
def test_a_cast_is_that_of_torch(name: str) -> None:
    assert tensor_bytes(tensor().cast(BY_NAME[name])) == VALUES[name].tobytes()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_quantized_row_is_that_of_ggml(name: str) -> None:
    assert tensor_bytes(tensor().cast(BY_NAME[name])) == VALUES[name].tobytes()


@pytest.mark.parametrize("name", BLOCKS)
def test_of_a_view_the_elements_are_quantized_in_its_order(name: str) -> None:
    turned = dense("w", "float32", (96, 4), numbers().T.tobytes()).transposed()
    assert tensor_bytes(turned.cast(BY_NAME[name])) == VALUES[name].tobytes()

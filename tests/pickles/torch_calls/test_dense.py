"""Views, parameters, subclasses and lazy bits, read by us and by torch.load."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cgpt_convert.core import findings
from tests.helpers import torch_names, zips
from tests.helpers.torch_agreement import BASE, COMPLEX, agree, bits, check, filled, opened, raw


@pytest.mark.parametrize(
    "value",
    [
        BASE,
        BASE.t() if BASE.ndim == 2 else BASE.permute(2, 0, 1),
        BASE[1:4, ::2, 3:],
        BASE[2],
        BASE[:, 1],
        BASE[..., 4],
        BASE[4, 5, 6],
        BASE[0, 0].expand(4, 7),
        BASE[:0],
        BASE.as_strided((3, 4), (2, 1), 5),
        BASE.as_strided((2, 2, 2), (0, 1, 1), 0),
        BASE.view(-1)[10:20].view(2, 5).t(),
        torch.zeros(()).expand(3),
        torch.zeros(1, 1, 1),
    ],
    ids=[
        *("whole", "permuted", "steps", "row", "column", "last", "element", "expanded", "empty"),
        *("overlapping", "stride-0", "transposed-slice", "expanded-scalar", "ones"),
    ],
)
def test_views(value: torch.Tensor) -> None:
    checkpoint = check({"v": value})
    assert checkpoint["v"].strides == value.stride()
    np.testing.assert_array_equal(checkpoint["v"].numpy(), value.numpy())


@settings(max_examples=60, deadline=None)
@given(draw=st.data())
def test_any_view(draw: st.DataObject) -> None:
    sizes = draw.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    strides = draw.draw(st.lists(st.integers(0, 9), min_size=len(sizes), max_size=len(sizes)))
    start = draw.draw(st.integers(0, 20))
    dtype = draw.draw(st.sampled_from([torch.uint8, torch.int16, torch.float32, torch.complex64]))
    check({"v": filled(dtype, 140).as_strided(sizes, strides, start)})


def test_views_of_one_storage_share_it_and_tied_weights_are_one_view() -> None:
    checkpoint = check({"a": BASE, "b": BASE, "c": BASE[1], "d": BASE.clone()})
    a, b, c, d = checkpoint.values()
    assert a.storage is b.storage is c.storage is not d.storage
    assert checkpoint.ties == {"b": "a"}
    assert len(checkpoint.storages) == 2


def test_parameters_and_buffers() -> None:
    check({"p": nn.Parameter(BASE), "frozen": nn.Parameter(BASE, requires_grad=False)})
    check({"b": nn.Buffer(BASE[2])})


def test_gradient_flags_and_devices_do_not_matter() -> None:
    checkpoint = check({"w": BASE.clone().requires_grad_()})
    assert checkpoint["w"].storage.device == "cpu"


@pytest.mark.parametrize("wrap", [torch.Tensor.clone, nn.Parameter], ids=["tensor", "parameter"])
def test_attributes_of_a_tensor_are_shown_and_their_tensors_found(
    wrap: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    weight: Any = wrap(BASE)
    weight.scale = torch.tensor([2.0])
    weight.note = "absmax"
    data = zips.saved({"w": weight})
    checkpoint = opened(data)
    loaded = torch.load(io.BytesIO(data), weights_only=False)["w"]
    agree(checkpoint, {"w": loaded.detach(), "w.scale": loaded.scale})
    assert [(leaf.path, leaf.value) for leaf in checkpoint.others] == [("w.note", "absmax")]


class Marked(torch.Tensor):
    """A subclass as people write them."""


def test_tensor_subclasses() -> None:
    marked = BASE.clone().as_subclass(Marked)
    checkpoint = opened(zips.saved({"w": marked}))
    assert bits(checkpoint["w"]) == raw(BASE)
    assert findings.FOREIGN in [finding.rule for finding in checkpoint.findings]


def test_subclass_that_wraps_two_tensors() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    checkpoint = opened(zips.saved({"w": TwoTensor(BASE, BASE + 1)}))
    assert checkpoint.exotic["w"].kind == "subclass"
    assert checkpoint.exotic["w"].shape == (5, 6, 7)
    assert {name: bits(tensor) for name, tensor in checkpoint.items()} == {
        "w.a": raw(BASE),
        "w.b": raw(BASE + 1),
    }


@pytest.mark.parametrize(
    "value",
    [
        *(COMPLEX, COMPLEX.conj(), COMPLEX.conj().imag, COMPLEX.imag, COMPLEX.conj().t()),
        *(torch_names.neg_view(BASE), torch_names.neg_view(COMPLEX.conj()), COMPLEX.conj().conj()),
    ],
    ids=["plain", "conj", "neg", "imag", "conj-t", "neg-real", "neg-conj", "conj-conj"],
)
def test_30_conjugate_and_negative_bits_are_applied(value: torch.Tensor) -> None:
    check({"c": value})

"""Every form in which torch writes a tensor, read by us and by torch.load; then forged forms."""

from __future__ import annotations

import collections
import importlib
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cgpt_convert import dtypes, findings
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.containers.torchzip import read
from cgpt_convert.errors import CgptError, Malformed, Unsupported
from cgpt_convert.inert import text
from cgpt_convert.source import LocalFile, MemoryBytes
from cgpt_convert.tensor import Tensor
from tests import zips
from tests.mutations import mutated
from tests.zips import Entry

ignore_deprecation = pytest.mark.filterwarnings("ignore")  # torch warns of its own old forms


def opened(data: bytes) -> Checkpoint:
    return read(MemoryBytes("x.bin", data))


def flat(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in what torch.load gave, under dotted names."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in pairs:
            yield from flat(item, f"{name}.{key}" if name else str(key))


def raw(tensor: torch.Tensor) -> bytes:
    """The elements in C order, little-endian, bit by bit."""
    copy = torch.empty(tensor.numel(), dtype=tensor.dtype)
    copy.copy_(tensor.detach().resolve_conj().resolve_neg().reshape(-1))
    return copy.view(torch.uint8).numpy().tobytes() if copy.numel() else b""


def bits(tensor: Tensor) -> bytes:
    return b"".join(tensor.blocks())


def agree(checkpoint: Checkpoint, expected: Any) -> None:
    """Names, order, types, shapes and every bit are torch's."""
    wanted = dict(flat(expected))
    assert list(checkpoint) == list(wanted)
    for name, tensor in wanted.items():
        ours = checkpoint[name]
        assert f"torch.{ours.dtype.name}" == str(tensor.dtype), name
        assert ours.shape == tuple(tensor.shape), name
        assert bits(ours) == raw(tensor), name


def check(value: Any, *, weights_only: bool = True) -> Checkpoint:
    """Save `value` with torch; read it with torch and with us; what we read."""
    data = zips.saved(value)
    checkpoint = opened(data)
    agree(checkpoint, torch.load(io.BytesIO(data), weights_only=weights_only))
    return checkpoint


def filled(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of random bits, the same at each run; NaN and infinity among them."""
    numel = int(np.prod(shape))
    generator = torch.Generator().manual_seed(numel)
    width = torch.empty(0, dtype=dtype).element_size()
    most = 2 if dtype == torch.bool else 256
    octets = torch.randint(0, most, (numel * width,), generator=generator, dtype=torch.uint8)
    return octets.view(dtype).reshape(shape)


# -- element types

TYPES = [getattr(torch, row.name) for row in dtypes.TABLE if row.kind in "fiubc"]


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


# -- views

BASE = torch.arange(210.0).view(5, 6, 7)


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


# -- parameters, subclasses, lazy bits


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


COMPLEX = torch.view_as_complex(torch.arange(12.0).view(2, 3, 2))


@pytest.mark.parametrize(
    "value",
    [
        *(COMPLEX, COMPLEX.conj(), COMPLEX.conj().imag, COMPLEX.imag, COMPLEX.conj().t()),
        *(torch._neg_view(BASE), torch._neg_view(COMPLEX.conj()), COMPLEX.conj().conj()),
    ],
    ids=["plain", "conj", "neg", "imag", "conj-t", "neg-real", "neg-conj", "conj-conj"],
)
def test_30_conjugate_and_negative_bits_are_applied(value: torch.Tensor) -> None:
    check({"c": value})


# -- tensors that are not one strided view


def dense_parts(checkpoint: Checkpoint, name: str) -> dict[str, bytes]:
    return {
        part.name.removeprefix(f"{name}."): bits(part) for part in checkpoint.exotic[name].parts
    }


SPARSE = torch.tensor([[0.0, 1, 0, 2], [3, 0, 0, 0], [0, 0, 0, 4], [0, 5, 6, 0]])


def test_sparse_coo() -> None:
    value = SPARSE.to_sparse_coo()
    checkpoint = opened(zips.saved({"s": value}))
    exotic = checkpoint.exotic["s"]
    assert (exotic.kind, exotic.dtype, exotic.shape) == ("sparse_coo", "float32", (4, 4))
    assert dense_parts(checkpoint, "s") == {
        "indices": raw(value.indices()),
        "values": raw(value.values()),
    }
    assert not checkpoint.tensors


@ignore_deprecation
@pytest.mark.parametrize("layout", ["csr", "csc", "bsr", "bsc"])
def test_sparse_compressed(layout: str) -> None:
    block = ((2, 2),) if layout.startswith("b") else ()
    value = getattr(SPARSE, f"to_sparse_{layout}")(*block)
    checkpoint = opened(zips.saved({"s": value}))
    rows = layout.endswith("sr")
    names = ("crow_indices", "col_indices") if rows else ("ccol_indices", "row_indices")
    assert checkpoint.exotic["s"].kind == f"sparse_{layout}"
    assert dense_parts(checkpoint, "s") == {
        name: raw(getattr(value, name)()) for name in (*names, "values")
    }


@ignore_deprecation
def test_nested_strided() -> None:
    value = torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)])
    checkpoint = opened(zips.saved({"n": value}))
    parts = dense_parts(checkpoint, "n")
    assert checkpoint.exotic["n"].kind == "nested"
    assert parts["buffer"] == raw(torch.cat([torch.ones(6), torch.zeros(12)]))
    assert parts["sizes"] == raw(torch.tensor([[2, 3], [4, 3]]))


@ignore_deprecation
def test_nested_jagged() -> None:
    value = torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)], layout=torch.jagged)
    checkpoint = opened(zips.saved({"n": value}))
    found = [bits(tensor) for tensor in checkpoint.values()]
    assert raw(torch.cat([torch.ones(6), torch.zeros(12)])) in found


def test_meta_tensors_have_no_data() -> None:
    checkpoint = opened(zips.saved({"m": torch.empty(3, 4, device="meta", dtype=torch.half)}))
    exotic = checkpoint.exotic["m"]
    assert (exotic.kind, exotic.dtype, exotic.shape) == ("meta", "float16", (3, 4))
    assert exotic.parts == ()


@ignore_deprecation
@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32], ids=str)
def test_quantized_per_tensor(dtype: torch.dtype) -> None:
    value = torch.quantize_per_tensor(BASE, 0.5, 3, dtype)
    checkpoint = opened(zips.saved({"q": value.permute(2, 0, 1)}))
    assert f"torch.{checkpoint['q'].dtype.name}" == str(dtype)
    assert checkpoint["q"].quantizer == "torch.per_tensor_affine, 0.5, 3"
    assert bits(checkpoint["q"]) == raw(value.int_repr().permute(2, 0, 1))


@ignore_deprecation
def test_quantized_per_channel() -> None:
    scales, zeros = torch.rand(6, dtype=torch.float64) + 0.1, torch.arange(6)
    value = torch.quantize_per_channel(BASE, scales, zeros, 1, torch.qint8)
    checkpoint = opened(zips.saved({"q": value}))
    assert checkpoint.exotic["q"].kind == "quantized per_channel_affine"
    assert checkpoint.exotic["q"].detail == "torch.per_channel_affine, axis 1"
    assert dense_parts(checkpoint, "q") == {
        "values": raw(value.int_repr()),
        "scales": raw(scales),
        "zero_points": raw(zeros),
    }
    assert not checkpoint.findings


@ignore_deprecation
def test_quantized_below_a_byte() -> None:
    scales, zeros = torch.ones(5), torch.zeros(5)
    value = torch.quantize_per_channel(BASE.view(5, 42), scales, zeros, 0, torch.quint4x2)
    checkpoint = opened(zips.saved({"q": value}))
    assert checkpoint.exotic["q"].kind == "quint4x2"
    assert checkpoint.exotic["q"].shape == (5, 42)
    assert len(dense_parts(checkpoint, "q")["values"]) == 5 * 42 // 2


# -- what the tensors lie in


def test_containers_of_every_kind() -> None:
    one, two = torch.ones(2), torch.zeros(3)
    checkpoint = check(
        {
            "list": [one, [two, (one,)]],
            "ordered": collections.OrderedDict(a=one, b={"c": two}),
            "default": {"x": one},
            3: two,
            "counter": 4,
            "size": torch.Size([1, 2]),
        }
    )
    assert checkpoint.containers == {"": "", "ordered": "", "ordered.b": "ordered", "default": ""}
    leaves = {leaf.path: leaf.value for leaf in checkpoint.others}
    assert leaves["counter"] == 4


def test_defaultdicts() -> None:
    value = collections.defaultdict(list)
    value["w"].append(torch.ones(2))
    check({"state": value}, weights_only=False)


def test_optimizer_state_has_integer_keys() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    checkpoint = check({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert "optimizer.state.0.exp_avg" in checkpoint
    leaves = {leaf.path: leaf.value for leaf in checkpoint.others}
    assert leaves["optimizer.param_groups.0.betas"] == (0.9, 0.999)


def test_state_dict_carries_its_metadata_as_no_tensor() -> None:
    checkpoint = check(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict())
    assert [leaf.path for leaf in checkpoint.others] == ["_metadata"]
    assert "version" in text(checkpoint.others[0].value)


def test_single_tensor_and_list_of_tensors() -> None:
    check(BASE)
    check([BASE, BASE[0]])


def test_same_name_twice_is_a_finding() -> None:
    checkpoint = opened(zips.saved({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}))
    assert [finding.rule for finding in checkpoint.findings] == [findings.COLLISION]
    assert checkpoint.collisions == {"a.b"}


class Net(nn.Module):
    """A model as people pickle them whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])
        self.register_buffer("mask", torch.ones(2, 2).tril())
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.plain = torch.tensor([1.0])
        self.parent = [self]


def test_whole_module_has_the_names_of_its_state_dict() -> None:
    model = Net()
    checkpoint = opened(zips.saved(model))
    state = model.state_dict()
    assert set(checkpoint) == {*state, "plain"}
    assert {name: bits(checkpoint[name]) for name in state} == {
        name: raw(tensor) for name, tensor in state.items()
    }
    assert checkpoint.ties in ({"head.weight": "embed.weight"}, {"embed.weight": "head.weight"})


@dataclass
class Hyper:
    """A class that only its author has."""

    rate: float
    ema: torch.Tensor


def test_training_checkpoint_with_foreign_objects() -> None:
    import argparse

    checkpoint = check(
        {
            "state_dict": collections.OrderedDict(w=BASE),
            "hyper_parameters": argparse.Namespace(lr=0.1, path=Path("a/b")),
            "hparams": {"scheduler": Path("x"), "epoch": 3},
            "callbacks": {"Early{'monitor': 'loss'}": {"best": torch.tensor(0.5)}},
            "rng": [torch.get_rng_state(), None],
        },
        weights_only=False,
    )
    [finding] = checkpoint.findings
    assert finding.rule is findings.FOREIGN
    assert "argparse.Namespace" in finding.detail


def test_tensors_inside_foreign_objects_are_found() -> None:
    checkpoint = opened(zips.saved({"h": Hyper(0.1, BASE)}))
    assert bits(checkpoint["h.ema"]) == raw(BASE)
    assert [leaf.path for leaf in checkpoint.others] == ["h"]


# -- NumPy inside a pickle

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


# -- other writers and their options


class Script(nn.Module):
    """Enough for a TorchScript archive with constants."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.register_buffer("scale", torch.tensor([2.0]))
        self.sizes = [1, 2, 3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        return y * self.scale + torch.tensor([1.0, 2.0])


@ignore_deprecation
def test_torchscript_has_the_names_of_its_state_dict() -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(Script(), torch.ones(3)), file)
    checkpoint = opened(file.getvalue())
    state = torch.jit.load(io.BytesIO(file.getvalue())).state_dict()
    assert checkpoint.kind == "TorchScript archive"
    ours = {name: bits(tensor) for name, tensor in checkpoint.items() if name in state}
    assert ours == {name: raw(tensor) for name, tensor in state.items()}
    others = [name for name in checkpoint if name not in state]
    assert others
    assert all(name.startswith("constants") for name in others)
    assert [finding.rule for finding in checkpoint.findings] == [findings.COMPRESSED]  # its code


def swapped(data: bytes, width: int) -> bytes:
    return b"".join(data[at : at + width][::-1] for at in range(0, len(data), width))


BIG_TYPES = [dtype for dtype in TYPES if dtypes.BY_NAME[str(dtype)[6:]].storage]


@pytest.mark.parametrize("dtype", BIG_TYPES, ids=str)
def test_31_big_endian_archives(dtype: torch.dtype) -> None:
    value = filled(dtype, 4, 5).t()
    entries = zips.entries_of(zips.saved({"w": value}))
    width = dtypes.BY_NAME[str(dtype)[6:]].swap_width
    content = swapped(entries["archive/data/0"].data, width)
    data = zips.changed(zips.saved({"w": value}), byteorder=b"big", data__0=content)
    loaded = torch.load(io.BytesIO(data))
    assert raw(loaded["w"]) == raw(value)
    agree(opened(data), loaded)


def test_31_big_endian_archives_with_untyped_storages_are_read_as_they_were_meant() -> None:
    """torch does not swap these, for it does not know their type when it reads them."""
    value = torch.tensor([1, 2, 770], dtype=torch.uint16)
    content = swapped(raw(value), 2)
    data = zips.changed(zips.saved({"w": value}), byteorder=b"big", data__0=content)
    assert torch.load(io.BytesIO(data))["w"].tolist() == [256, 512, 515]
    assert opened(data)["w"].numpy().tolist() == [1, 2, 770]


def test_31_absent_byte_order_is_little() -> None:
    data = zips.changed(zips.saved({"w": BASE}), byteorder=None)
    agree(opened(data), torch.load(io.BytesIO(data)))


@pytest.mark.parametrize("order", [b"junk", b"", b"BIG", b"little\n", b"b" * 100_000])
def test_31_any_other_byte_order_is_refused(order: bytes) -> None:
    with pytest.raises(CgptError, match=r"byte order|at most"):
        opened(zips.changed(zips.saved({"w": BASE}), byteorder=order))


def test_values_that_were_not_saved_are_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "skipped.pt"
    with torch.serialization.skip_data():
        torch.save({"w": BASE}, path)
    checkpoint = read(LocalFile(path))
    assert checkpoint["w"].shape == (5, 6, 7)
    assert findings.VALUES_NOT_SAVED in [finding.rule for finding in checkpoint.findings]


@pytest.mark.parametrize("alignment", [1, 8, 4096])
def test_alignment_of_storages_may_be_any(alignment: int) -> None:
    config: Any = importlib.import_module("torch.utils.serialization.config")
    with config.patch({"save.storage_alignment": alignment}):
        data = zips.saved({"a": torch.ones(3, dtype=torch.uint8), "b": BASE})
    checkpoint = opened(data)
    agree(checkpoint, torch.load(io.BytesIO(data)))
    assert checkpoint["b"].storage.offset % alignment == 0
    assert not checkpoint.findings


@pytest.mark.parametrize(
    ("file", "root"),
    [
        ("pytorch_model.bin", "pytorch_model"),
        ("a.b.c.bin", "a.b.c"),
        ("ckpt", "ckpt"),
        ("with space.pt", "with space"),
        ("ünï.pt", "archive"),
    ],
)
def test_root_follows_the_file_name_and_does_not_matter(
    tmp_path: Path, file: str, root: str
) -> None:
    torch.save({"w": BASE}, tmp_path / file)
    checkpoint = read(LocalFile(tmp_path / file))
    assert checkpoint.root == root
    agree(checkpoint, {"w": BASE})


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_pickle_protocol(protocol: int) -> None:
    value = collections.OrderedDict(a=nn.Parameter(BASE), b=[BASE[0], {"c": COMPLEX.conj()}])
    data = zips.saved(value, pickle_protocol=protocol)
    agree(opened(data), torch.load(io.BytesIO(data), weights_only=False))


def test_pickle_protocol_0_cannot_hold_references_to_storages() -> None:
    data = zips.saved({"w": BASE}, pickle_protocol=0)
    with pytest.raises(AssertionError):
        torch.load(io.BytesIO(data), weights_only=False)
    with pytest.raises(Malformed, match="not a storage reference"):
        opened(data)


# -- forged tensors


@dataclass
class Ref:
    """A reference to a storage, as the pickle is to hold it."""

    cls: Any = torch.FloatStorage
    key: Any = "0"
    location: Any = "cpu"
    numel: Any = 6
    kind: Any = "storage"


@dataclass
class Made:
    """A call that the pickle is to hold; it is not made when the pickle is written."""

    func: Any
    args: tuple[Any, ...]
    state: Any = None
    items: Any = None
    elements: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        pairs = iter(self.items) if self.items else None
        return self.func, self.args, self.state, iter(self.elements or ()) or None, pairs


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Ref):
            return obj.kind, obj.cls, obj.key, obj.location, obj.numel
        return None


def forged(value: Any, storages: dict[str, bytes] | None = None) -> bytes:
    """An archive of that pickle, with 24 bytes in storage 0 unless other storages are given."""
    file = io.BytesIO()
    _Pickler(file, 2).dump(value)
    records = {"0": bytes(range(24))} if storages is None else storages
    entries = [Entry("archive/data.pkl", file.getvalue())]
    entries += [Entry(f"archive/data/{key}", data) for key, data in records.items()]
    return zips.build([*entries, Entry("archive/version", b"3\n")])


def v2(
    storage: Any = None,
    offset: Any = 0,
    size: Any = (2, 3),
    stride: Any = (3, 1),
    *rest: Any,
    **more: Any,
) -> Made:
    args = (storage or Ref(), offset, size, stride, False, collections.OrderedDict(), *rest)
    return Made(torch._utils._rebuild_tensor_v2, args, **more)


def v3(storage: Any, size: Any, stride: Any, dtype: Any, offset: Any = 0) -> Made:
    hooks: Any = collections.OrderedDict()
    return Made(
        torch._utils._rebuild_tensor_v3, (storage, offset, size, stride, False, hooks, dtype)
    )


def torch_reads(data: bytes) -> Any:
    return torch.load(io.BytesIO(data))["w"]


def refused(value: Any, kind: type[CgptError], match: str, **options: Any) -> None:
    """The file is refused with that error, which names the tensor."""
    with pytest.raises(kind, match=match) as error:
        opened(forged({"w": value}, **options))
    assert "w:" in str(error.value)


def test_a_forged_file_that_tells_the_truth_is_read() -> None:
    data = forged({"w": v2()})
    agree(opened(data), {"w": torch_reads(data)})


@pytest.mark.parametrize("huge", [-1, -(1 << 40), 1 << 62, 1 << 63, 1 << 70, -(1 << 70)])
@pytest.mark.parametrize("field", ["offset", "size", "stride"])
def test_24_negative_and_huge_numbers_are_refused(field: str, huge: int) -> None:
    value = {"offset": huge, "size": (huge, 3), "stride": (huge, 1)}[field]
    refused(v2(**{field: value}), Malformed, "negative or too large|need")


@pytest.mark.parametrize("numel", [-1, 1 << 63, 1 << 70, True, 6.0, "6", None])
def test_24_storages_of_impossible_sizes_are_refused(numel: Any) -> None:
    refused(v2(Ref(numel=numel)), Malformed, "elements|not a storage reference")


def test_24_numbers_that_are_none_are_refused() -> None:
    for field, value in (
        ("offset", "0"),
        ("offset", 0.0),
        ("offset", True),
        ("size", (2.0, 3)),
        ("size", "23"),
        ("size", ((2, 3),)),
        ("stride", (True, 1)),
        ("stride", None),
    ):
        refused(v2(**{field: value}), Malformed, "not an integer|not a tuple")


def test_24_empty_tensor_with_a_huge_dimension_is_refused() -> None:
    refused(v2(size=(0, 1 << 70)), Malformed, "too large")


@pytest.mark.parametrize(
    "fields",
    [
        {"size": (2, 4), "stride": (4, 1)},
        {"offset": 1},
        {"stride": (4, 1)},
        {"size": (7,), "stride": (1,)},
        {"size": (), "stride": (), "offset": 6},
        {"size": (2,), "stride": (1 << 61,)},
    ],
)
def test_25_view_past_the_end_of_its_storage_is_refused(fields: dict[str, Any]) -> None:
    refused(v2(**fields), Malformed, "need")
    with pytest.raises(RuntimeError):
        torch_reads(forged({"w": v2(**fields)}))


def test_25_record_shorter_than_declared_is_refused() -> None:
    refused(v2(), Malformed, "has 20 bytes and 24 are declared", storages={"0": bytes(20)})


def test_25_record_longer_than_declared_is_a_finding() -> None:
    data = forged({"w": v2()}, {"0": bytes(range(30))})
    checkpoint = opened(data)
    assert [str(finding) for finding in checkpoint.findings] == [
        "CGPT005 a storage is longer than the pickle says: 0 by 6 bytes"
    ]
    assert bits(checkpoint["w"]) == bytes(range(24))
    with pytest.raises(RuntimeError):  # torch is stricter here, but not when it maps the file
        torch_reads(data)


def test_25_missing_record_is_refused() -> None:
    refused(v2(Ref(key="7")), Malformed, "no record archive/data/7")
    refused(v2(Ref(key="../data.pkl", numel=1)), Malformed, "no record")


def test_25_all_misfits_are_told() -> None:
    value = {f"w{n}": v2(offset=n) for n in range(1, 40)}
    with pytest.raises(Malformed, match="39 tensors cannot be read") as error:
        opened(forged(value))
    assert "w1:" in str(error.value)
    assert "and 19 more" in str(error.value)


def test_26_stride_0_bomb_is_refused() -> None:
    """24 bytes that claim 4 TiB. torch makes the tensor, and falls when somebody copies it."""
    data = forged({"small": v2(), "w": v2(size=(1 << 40,), stride=(0,))})
    assert torch_reads(data).shape == (1 << 40,)
    with pytest.raises(Unsupported, match=r"storages of 24: w \(4,398,046,511,104 bytes\)"):
        opened(data)


def test_26_bomb_inside_a_sparse_tensor_is_refused() -> None:
    layout = Made(torch.serialization._get_layout, ("torch.sparse_coo",))
    indices = v2(Ref(torch.LongStorage, numel=3), size=(1, 1), stride=(1, 1))
    values = v2(Ref(key="1"), size=(1 << 40,), stride=(0,))
    bomb = Made(torch._utils._rebuild_sparse_tensor, (layout, (indices, values, (4,), True)))
    with pytest.raises(Unsupported, match=r"w\.values"):
        opened(forged({"w": bomb}, {"0": bytes(24), "1": bytes(24)}))


def test_26_many_overlapping_views_are_refused() -> None:
    size = (1 << 20, 1 << 8)
    views = {f"w{n}": v2(offset=n, size=size, stride=(0, 0)) for n in range(6)}
    with pytest.raises(Unsupported, match="6,442,450,944 bytes over storages of 24"):
        opened(forged(views))


def test_26_expanded_masks_as_models_have_them_pass() -> None:
    checkpoint = opened(forged({"w": v2(size=(16, 1024, 1024), stride=(0, 0, 0))}))
    assert checkpoint["w"].nbytes == 64 << 20


def test_26_tied_weights_count_once() -> None:
    one = v2(size=(200 << 20,), stride=(0,))
    assert len(opened(forged({f"w{n}": one for n in range(50)}))) == 50


def test_27_ranks_that_differ_are_refused() -> None:
    refused(v2(size=(6,)), Malformed, "1 dimensions but 2 strides")
    refused(v2(stride=(1,)), Malformed, "2 dimensions but 1 strides")
    refused(v2(size=(1,) * 65, stride=(1,) * 65), Unsupported, "65 dimensions")


def test_27_huge_rank_costs_little() -> None:
    shared = (1,) * 100_000
    value = {f"w{n}": v2(size=shared, stride=shared) for n in range(300)}
    with pytest.raises(Unsupported, match="100000 dimensions"):
        opened(forged(value))


@pytest.mark.parametrize(
    "other",
    [Ref(torch.IntStorage), Ref(numel=5), Ref(torch.UntypedStorage, numel=24)],
    ids=["type", "size", "untyped"],
)
def test_28_one_storage_with_two_types_is_refused(other: Ref) -> None:
    value = {"first": v2(), "w": v2(other, size=(1,), stride=(1,))}
    with pytest.raises(Malformed, match="w: storage 0 is declared with two types or sizes"):
        opened(forged(value))


def test_29_untyped_storages_count_bytes() -> None:
    data = forged({"w": v3(Ref(torch.UntypedStorage, numel=24), (6,), (1,), torch.float32)})
    agree(opened(data), {"w": torch_reads(data)})
    for numel in (6, 23):
        storage = Ref(torch.UntypedStorage, numel=numel)
        with pytest.raises(Malformed, match="need"):
            opened(forged({"w": v3(storage, (6,), (1,), torch.float32)}, {"0": bytes(numel)}))


INT4: Any = vars(torch)["int4"]


def test_29_unknown_types_are_not_supported() -> None:
    untyped = Ref(torch.UntypedStorage, numel=24)
    refused(v3(untyped, (6,), (1,), INT4), Unsupported, "unknown dtype torch.int4")
    refused(v3(untyped, (6,), (1,), "float32"), Unsupported, "unknown dtype")
    refused(v2(Ref(torch.nn.Linear)), Unsupported, "unknown storage class")


@pytest.mark.parametrize("bits_of", [{"conj": True}, {"conj": True, "neg": True}])
def test_30_conjugate_bit_on_real_numbers_is_refused(bits_of: dict[str, bool]) -> None:
    refused(v2(None, 0, (2, 3), (3, 1), bits_of), Malformed, "conjugate bit on float32")


@pytest.mark.parametrize("metadata", [{"evil": 1}, {"neg": 1}, {1: True}])
def test_30_metadata_that_nobody_knows_is_not_supported(metadata: Any) -> None:
    refused(v2(None, 0, (2, 3), (3, 1), metadata), Unsupported, "tensor metadata")


def test_a_tensor_that_the_pickle_changes_after_making_it_is_refused() -> None:
    """BUILD on a tensor calls set_() in torch: the tensor becomes another."""
    other = (Ref(key="1"), 0, (1,), (1,))
    storages = {"0": bytes(24), "1": bytes(24)}
    data = forged({"w": v2(state=other)}, storages)
    assert torch_reads(data).shape == (1,)
    with pytest.raises(Malformed, match="changed after it is made"):
        opened(data)
    refused(v2(items=[(0, 1.0)]), Malformed, "changed after it is made")
    refused(v2(elements=[1.0]), Malformed, "changed after it is made")


@pytest.mark.parametrize("count", [0, 3, 5, 9])
def test_wrong_number_of_arguments_is_refused(count: int) -> None:
    args = (*v2().args, None, None, None)[:count]
    refused(Made(torch._utils._rebuild_tensor_v2, args), Malformed, "with the arguments")


@pytest.mark.parametrize("storage", ["0", None, ("storage",), {}, 5])
def test_storage_that_is_no_reference_is_refused(storage: Any) -> None:
    made = Made(torch._utils._rebuild_tensor_v2, (storage, *v2().args[1:]))
    refused(made, Malformed, "not a reference to a storage")


@pytest.mark.parametrize("ref", [Ref(kind="module"), Ref(key=0), Ref(location=None), Ref(cls="x")])
def test_reference_that_is_no_storage_is_refused(ref: Ref) -> None:
    refused(v2(ref), Malformed, "not a storage reference")


def test_wrappers_of_no_tensor_are_refused() -> None:
    for inner in (None, 5, [v2()], Made(torch.Size, ((1,),))):
        made = Made(torch._utils._rebuild_parameter, (inner, True, None))
        if isinstance(inner, Made):
            assert not opened(forged({"w": made})).tensors
        else:
            refused(made, Malformed, "not a tensor")


def test_attributes_of_attributes_are_not_followed_for_ever() -> None:
    many = v2()
    for _ in range(150):
        many = Made(torch._utils._rebuild_parameter_with_state, (v2(), True, None, {"a": many}))
    with pytest.raises(Unsupported, match="nested deeper"):
        opened(forged({"w": many}))


def test_22_tensor_that_is_its_own_attribute_is_walked_once() -> None:
    file = io.BytesIO()
    _Pickler(file, 2).dump(v2())
    plain = file.getvalue()[2:-1]  # without PROTO and STOP
    call = b"ctorch._utils\n_rebuild_parameter_with_state\n(" + plain + b"\x88N}q\x70tRq\x71"
    looped = b"}X\1\0\0\0w" + call + b"h\x70X\1\0\0\0ah\x71s0" + b"s."
    checkpoint = opened(zips.changed(forged({"w": v2()}), **{"data.pkl": looped}))
    assert list(checkpoint) == ["w", "w.a"]
    assert checkpoint.ties == {"w.a": "w"}


def test_14_record_that_nothing_references_is_told() -> None:
    checkpoint = opened(forged({"w": v2()}, {"0": bytes(24), "99": b"hidden payload"}))
    assert [str(finding) for finding in checkpoint.findings] == [
        "CGPT001 bytes that no tensor references: 14 bytes"
    ]
    assert sorted(storage.key for storage in checkpoint.storages) == ["0", "99"]


@settings(max_examples=150, deadline=None)
@given(draw=st.data())
def test_any_numbers_are_read_as_torch_reads_them_or_refused(draw: st.DataObject) -> None:
    """The oracle for what fits: torch.load makes the same tensor, or refuses too."""
    number = st.integers(-2, 9)
    size = draw.draw(st.lists(number, max_size=3))
    stride = draw.draw(st.lists(number, min_size=len(size), max_size=len(size)))
    offset = draw.draw(number)
    data = forged({"w": v2(None, offset, tuple(size), tuple(stride))})
    try:
        ours = opened(data)["w"]
    except CgptError:
        if min([*size, *stride, offset]) >= 0:  # torch allows some negative ones that do no harm
            with pytest.raises(RuntimeError):
                torch_reads(data)
        return
    assert bits(ours) == raw(torch_reads(data))


@settings(max_examples=150, deadline=None)
@given(damage=st.data())
def test_damaged_pickles_raise_only_our_errors(damage: st.DataObject) -> None:
    model = {"p": nn.Parameter(BASE[0]), "c": COMPLEX.conj(), "s": SPARSE.to_sparse_coo()}
    entries = zips.entries_of(zips.saved(model))
    pickled = damage.draw(mutated(entries["archive/data.pkl"].data))
    entries["archive/data.pkl"] = Entry("archive/data.pkl", pickled)
    try:
        checkpoint = opened(zips.build(entries.values()))
    except CgptError:
        return
    for tensor in checkpoint.values():
        assert len(bits(tensor)) == tensor.nbytes


def test_zip_of_a_torch_file_by_another_program_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rezipped.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, entry in zips.entries_of(zips.saved({"w": BASE})).items():
            file.writestr(name, entry.data)
    checkpoint = read(LocalFile(path))
    assert bits(checkpoint["w"]) == raw(BASE)
    assert [finding.rule for finding in checkpoint.findings] == [findings.COMPRESSED]


def test_numbers_of_float_bits_are_what_struct_says() -> None:
    """The byte order, without torch's help."""
    data = forged({"w": v2()}, {"0": struct.pack("<6f", *range(6))})
    assert opened(data)["w"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]

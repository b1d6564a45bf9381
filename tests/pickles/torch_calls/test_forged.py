"""Pickles of tensors that torch never wrote: read as torch reads them, or refused."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from tests.helpers import torch_names, zips
from tests.helpers.forged_pickles import Made, Pickler, Ref, forged, refused, torch_reads, v2, v3
from tests.helpers.mutations import mutated
from tests.helpers.torch_agreement import BASE, COMPLEX, SPARSE, agree, bits, opened, raw
from tests.helpers.zips import Entry


def test_a_forged_file_that_tells_the_truth_is_read() -> None:
    data = forged({"w": v2()})
    agree(opened(data), {"w": torch_reads(data)})


@pytest.mark.parametrize("huge", [-1, -(1 << 40), 1 << 62, 1 << 63, 1 << 70, -(1 << 70)])
@pytest.mark.parametrize("field", ["offset", "size", "stride"])
def test_24_negative_and_huge_numbers_are_refused(field: str, huge: int) -> None:
    value = {"offset": huge, "size": (huge, 3), "stride": (huge, 1)}[field]
    refused(v2(**{field: value}), Malformed, "a number is negative|need")


@pytest.mark.parametrize("numel", [-1, 1 << 63, 1 << 70, True, 6.0, "6", None])
def test_24_storages_of_impossible_sizes_are_refused(numel: Any) -> None:
    refused(v2(Ref(numel=numel)), Malformed, "elements|the storage reference")


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
    refused(v2(size=(0, 1 << 70)), Malformed, "not below 2.63")


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
    refused(v2(), Malformed, "has 20 bytes, the pickle declares 24", storages={"0": bytes(20)})


def test_25_record_longer_than_declared_is_a_finding() -> None:
    data = forged({"w": v2()}, {"0": bytes(range(30))})
    checkpoint = opened(data)
    assert [str(finding) for finding in checkpoint.findings] == [
        "CGPT005 a storage is larger than its declared size: '0' by 6 bytes"
    ]
    assert bits(checkpoint["w"]) == bytes(range(24))
    with pytest.raises(RuntimeError):  # torch is stricter here, but not when it maps the file
        torch_reads(data)


def test_25_missing_record_is_refused() -> None:
    refused(v2(Ref(key="7")), Malformed, "no record 'archive/data/7'")
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
    layout = Made(torch_names.get_layout, ("torch.sparse_coo",))
    indices = v2(Ref(torch.LongStorage, numel=3), size=(1, 1), stride=(1, 1))
    values = v2(Ref(key="1"), size=(1 << 40,), stride=(0,))
    bomb = Made(torch_names.rebuild_sparse_tensor, (layout, (indices, values, (4,), True)))
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
    refused(v2(size=(6,)), Malformed, "1 dimensions and 2 strides")
    refused(v2(stride=(1,)), Malformed, "2 dimensions and 1 strides")
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
def test_28_a_second_type_of_one_storage_is_not_read(other: Ref) -> None:
    checkpoint = opened(forged({"first": v2(), "w": v2(other, size=(1,), stride=(1,))}))
    assert bits(checkpoint["first"]) == bytes(range(24))
    assert isinstance(checkpoint.exotic["w"].error, Malformed)
    assert checkpoint.exotic["w"].detail == "storage '0' is declared with two types or sizes"


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
    refused(v2(Ref(torch.nn.Linear)), Unsupported, "the storage class")


@pytest.mark.parametrize("bits_of", [{"conj": True}, {"conj": True, "neg": True}])
def test_30_conjugate_bit_on_real_numbers_is_refused(bits_of: dict[str, bool]) -> None:
    refused(v2(None, 0, (2, 3), (3, 1), bits_of), Malformed, "conjugate bit is set for float32")


@pytest.mark.parametrize("metadata", [{"evil": 1}, {"neg": 1}, {1: True}])
def test_30_metadata_that_nobody_knows_is_not_supported(metadata: Any) -> None:
    refused(v2(None, 0, (2, 3), (3, 1), metadata), Unsupported, "tensor metadata")


def test_a_tensor_that_the_pickle_changes_after_making_it_is_refused() -> None:
    """BUILD on a tensor calls set_() in torch: the tensor becomes another."""
    other = (Ref(key="1"), 0, (1,), (1,))
    storages = {"0": bytes(24), "1": bytes(24)}
    data = forged({"w": v2(state=other)}, storages)
    assert torch_reads(data).shape == (1,)
    with pytest.raises(Malformed, match="changed after it is created"):
        opened(data)
    refused(v2(items=[(0, 1.0)]), Malformed, "changed after it is created")
    refused(v2(elements=[1.0]), Malformed, "changed after it is created")


@pytest.mark.parametrize("count", [0, 3, 5, 9])
def test_wrong_number_of_arguments_is_refused(count: int) -> None:
    args = (*v2().args, None, None, None)[:count]
    refused(Made(torch_names.rebuild_tensor_v2, args), Malformed, "with invalid arguments")


@pytest.mark.parametrize("storage", ["0", None, ("storage",), {}, 5])
def test_storage_that_is_no_reference_is_refused(storage: Any) -> None:
    made = Made(torch_names.rebuild_tensor_v2, (storage, *v2().args[1:]))
    refused(made, Malformed, "not a reference to a storage")


@pytest.mark.parametrize("ref", [Ref(kind="module"), Ref(key=0), Ref(location=None), Ref(cls="x")])
def test_reference_that_is_no_storage_is_refused(ref: Ref) -> None:
    refused(v2(ref), Malformed, "the storage reference")


def test_wrappers_of_no_tensor_are_refused() -> None:
    for inner in (None, 5, [v2()], Made(torch.Size, ((1,),))):
        made = Made(torch_names.rebuild_parameter, (inner, True, None))
        if isinstance(inner, Made):
            assert not opened(forged({"w": made})).tensors
        else:
            refused(made, Malformed, "not a tensor")


def test_attributes_of_attributes_are_not_followed_for_ever() -> None:
    many = v2()
    for _ in range(150):
        many = Made(torch_names.rebuild_parameter_with_state, (v2(), True, None, {"a": many}))
    with pytest.raises(Unsupported, match="nested more than"):
        opened(forged({"w": many}))


def test_22_attributes_added_after_a_tensor_is_made_are_not_taken() -> None:
    """torch sets the attributes that the state has when it makes the tensor: here none."""
    file = io.BytesIO()
    Pickler(file, 2).dump(v2())
    plain = file.getvalue()[2:-1]  # without PROTO and STOP
    call = b"ctorch._utils\n_rebuild_parameter_with_state\n(" + plain + b"\x88N}q\x70tRq\x71"
    looped = b"}X\1\0\0\0w" + call + b"h\x70X\1\0\0\0ah\x71s0" + b"s."
    with pytest.raises(Malformed, match="an argument is changed after the call"):
        opened(zips.changed(forged({"w": v2()}), **{"data.pkl": looped}))


def test_14_record_that_nothing_references_is_told() -> None:
    checkpoint = opened(forged({"w": v2()}, {"0": bytes(24), "99": b"hidden payload"}))
    assert [str(finding) for finding in checkpoint.findings] == [
        "CGPT001 data that no tensor uses: 14 bytes"
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


def test_numbers_of_float_bits_are_what_struct_says() -> None:
    """The byte order, without torch's help."""
    data = forged({"w": v2()}, {"0": struct.pack("<6f", *range(6))})
    assert opened(data)["w"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]

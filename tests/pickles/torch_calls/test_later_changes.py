"""What a pickle changes after it made it, and equal keys: as torch reads it, or rejected."""

from __future__ import annotations

import collections
import io
import random
from typing import Any

import pytest
import torch

from cgpt_convert.core.errors import Malformed
from fuzz import against_torch
from tests.helpers import torch_names, zips
from tests.helpers.forged_pickles import Made, Pickler, Ref, forged, v2
from tests.helpers.mutations import edited
from tests.helpers.torch_agreement import agree, bits, difference, opened

STORAGES = {"0": bytes(range(24)), "1": bytes(range(100, 124))}
OTHER = v2(Ref(key="1"), 0, (3, 2), (2, 1))
STATEFUL: Any = torch_names.rebuild_parameter_with_state
FROM_TYPE: Any = torch_names.rebuild_from_type_v2
HOOKS: Any = collections.OrderedDict()


def parameter(state: Any) -> Made:
    return Made(STATEFUL, (v2(), True, HOOKS, state))


def typed(state: Any) -> Made:
    made = v2()
    return Made(FROM_TYPE, (made.func, torch.Tensor, made.args, state))


def loaded(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


@pytest.mark.parametrize("make", [parameter, typed])
@pytest.mark.parametrize(
    "state", [{"data": OTHER}, ({"a": 1, "data": OTHER}, None), (None, {"data": OTHER, "b": OTHER})]
)
def test_data_in_the_attributes_replaces_the_values(make: Any, state: Any) -> None:
    data = forged({"w": make(state), "o": OTHER}, STORAGES)
    checkpoint = opened(data)
    assert difference(checkpoint, loaded(data)) == ""
    assert bits(checkpoint["w"]) == STORAGES["1"]
    assert "w.data" not in checkpoint


@pytest.mark.parametrize("make", [parameter, typed])
@pytest.mark.parametrize("name", ["real", "imag"])
def test_an_attribute_that_writes_into_shared_memory_rejects_the_file(make: Any, name: str) -> None:
    data = forged({"first": v2(), "w": make({name: OTHER})}, STORAGES)
    with pytest.raises(Malformed, match=f"attribute '{name}' writes into its storage"):
        opened(data)


@pytest.mark.parametrize("make", [parameter, typed])
def test_attributes_that_change_what_others_mean_reject_the_tensor(make: Any) -> None:
    for name in ("__dict__", "__class__", "_grad"):
        checkpoint = opened(forged({"o": OTHER, "w": make({name: {}})}, STORAGES))
        assert isinstance(checkpoint.exotic["w"].error, Malformed)


def changed(value: Any, addition: bytes) -> bytes:
    """An archive whose pickle does `addition` to the first list or dict that it makes.

    That is under `shared` in the dict `value`, and changed when all values are made.
    """
    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    pickled = file.getvalue()
    assert pickled.endswith(b"u.")
    with_more = pickled[:-2] + b"X\1\0\0\0zh" + _memo(pickled) + addition + b"u."
    return zips.changed(forged(value, STORAGES), **{"data.pkl": with_more})


def _memo(pickled: bytes) -> bytes:
    at = pickled.index(b"shared") + len(b"shared") + 2  # and its BINPUT
    assert pickled[at : at + 1] in b"]}", pickled[at:]
    return pickled[at + 2 : at + 3]


def test_a_size_or_stride_that_grows_after_the_call_rejects_the_tensor() -> None:
    for shared in ([2, 3], [3, 1]):
        size, stride = (shared, [3, 1]) if shared == [2, 3] else ([2, 3], shared)
        data = changed({"shared": shared, "w": v2(None, 0, size, stride), "o": OTHER}, b"K\1a")
        assert loaded(data)["w"].shape == (2, 3)
        checkpoint = opened(data)
        assert isinstance(checkpoint.exotic["w"].error, Malformed)
        assert difference(checkpoint, loaded(data)) == ""


def test_lazy_bits_that_are_set_after_the_call_reject_the_tensor() -> None:
    metadata: dict[str, bool] = {}
    value = {"shared": metadata, "w": v2(None, 0, (6,), (1,), metadata), "o": OTHER}
    checkpoint = opened(changed(value, b"X\3\0\0\0neg\x88s"))
    assert isinstance(checkpoint.exotic["w"].error, Malformed)


@pytest.mark.parametrize("name", ["OrderedDict", "Counter"])
def test_a_dict_made_of_one_that_is_filled_later_rejects_the_file(name: str) -> None:
    shared = {"a": OTHER}
    value = {"shared": shared, "w": Made(getattr(collections, name), (shared,))}
    data = changed(value, b"X\1\0\0\0bX\1\0\0\0vs")
    assert list(loaded(data)["w"]) == ["a"]
    with pytest.raises(Malformed, match="is made of is changed later"):
        opened(data)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_made_of_a_list_that_is_extended_later_rejects_the_file(kind: type) -> None:
    shared = ["a"]
    data = changed({"shared": shared, "w": Made(kind, (shared,)), "o": OTHER}, b"X\1\0\0\0ba")
    whole = torch.load(io.BytesIO(data), weights_only=False)
    assert (whole["w"], whole["shared"]) == ({"a"}, ["a", "b"])
    with pytest.raises(Malformed, match="is made of is changed later"):
        opened(data)


@pytest.mark.parametrize("value", [{"a": OTHER}, collections.OrderedDict([("a", OTHER)])], ids=type)
def test_a_set_made_of_a_dict_has_its_keys(value: Any) -> None:
    data = forged({"w": OTHER, "s": Made(set, (value,))}, STORAGES)
    assert loaded(data)["s"] == {"a"}
    checkpoint = opened(data)
    assert list(checkpoint) == ["w"]
    assert not checkpoint.exotic


class Pairs(dict[Any, Any]):
    """A dict that is pickled with the pairs that it was made of."""

    def __init__(self, *pairs: tuple[Any, Any]) -> None:
        super().__init__()
        self.pairs = pairs

    def __reduce__(self) -> tuple[Any, ...]:
        return collections.OrderedDict, (), None, None, iter(self.pairs)


@pytest.mark.parametrize("again", [1, True, 1.0], ids=str)
def test_of_equal_keys_the_last_value_counts_and_both_are_told(again: Any) -> None:
    data = forged(Pairs((1, v2()), ("x", v2()), (again, OTHER)), STORAGES)
    checkpoint = opened(data)
    agree(checkpoint, loaded(data))
    assert checkpoint.collisions == {"1"}
    assert bits(checkpoint["1"]) == STORAGES["1"]


def test_of_equal_keys_with_dicts_the_last_dict_counts() -> None:
    data = forged(Pairs(("m", {"a": v2()}), ("m", {"b": OTHER}), ("n", OTHER)), STORAGES)
    checkpoint = opened(data)
    agree(checkpoint, loaded(data))
    assert list(checkpoint) == ["m.b", "n"]
    assert checkpoint.collisions == {"m.b"}


def test_a_counter_counts_the_members_of_a_list() -> None:
    counted = Made(collections.Counter, ([("a", "b"), ("a", "b")],))
    data = forged({"c": counted, "w": OTHER}, STORAGES)
    assert loaded(data)["c"] == {("a", "b"): 2}
    assert list(opened(data)) == ["w"]


@pytest.mark.filterwarnings("ignore")
def test_edited_pickles_are_read_as_torch_reads_them_or_rejected() -> None:
    """`python -m fuzz.against_torch` does more of it."""
    rng, seeds, both = random.Random(1), against_torch.pickles(), 0
    for data in [edited(rng, rng.choice(seeds), rng.choice(seeds)) for _ in range(600)]:
        who, what = against_torch.compared(against_torch.archive(data))
        assert not what, data
        both += who == "both"
    assert both > 20


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("streamed", [False, True], ids=["archive", "stream"])
@pytest.mark.parametrize("protocol", against_torch.PROTOCOLS)
def test_so_are_those_of_other_protocols_and_in_streams(protocol: int, streamed: bool) -> None:
    rng, seeds, both = random.Random(protocol), against_torch.seeds(protocol, streamed=streamed), 0
    for seed in seeds:
        assert against_torch.compared(seed.whole(seed.pickled), protocol) == ("both", "")
    for _ in range(100):
        seed = rng.choice(seeds)
        data = edited(rng, seed.pickled, rng.choice(seeds).pickled)
        who, what = against_torch.compared(seed.whole(data), protocol)
        assert not what, data
        both += who == "both"
    assert both

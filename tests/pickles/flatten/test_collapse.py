"""Large containers without a tensor are one value; where torch finds a tensor, so do we."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
import torch

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.torch import writer
from cgpt_convert.pickles.nodes import Value, text
from tests.helpers import zips
from tests.helpers.torch_agreement import check, opened

MANY = 1_001
LARGE = {
    "records": [{"step": n, "loss": n / 7, "at": (n, [n])} for n in range(MANY)],
    "vocabulary": {f"w{n}": n for n in range(MANY)},
    "ordered": collections.OrderedDict((f"w{n}", [n]) for n in range(MANY)),
    "counts": collections.Counter({f"w{n}": n for n in range(MANY)}),
    "shapes": {f"w{n}": torch.Size([n, 2]) for n in range(MANY)},
    "losses": [np.float64(n / 7) for n in range(MANY)],
    "devices": [torch.device("cpu"), *range(MANY)],
    "bytes": [{"b": b"\xff", "c": 1j * n} for n in range(MANY)],
    "types": [torch.float16, [1], *range(MANY)],
    "samples": [["a", {"b": (n,)}] for n in range(MANY)],
}


def leaves(checkpoint: Checkpoint) -> dict[str, Value]:
    return {leaf.path: leaf.value for leaf in checkpoint.others}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_large_container_without_a_tensor_is_one_value(name: str, protocol: int) -> None:
    value = {"w": torch.ones(2), "beside": {name: LARGE[name], "n": 3}}
    checkpoint = opened(zips.saved(value, pickle_protocol=protocol))
    assert list(checkpoint) == ["w"]
    assert set(leaves(checkpoint)) == {f"beside.{name}", "beside.n"}
    assert text(leaves(checkpoint)[f"beside.{name}"])


@pytest.mark.parametrize("last", [torch.ones(2), [[torch.ones(2)]], {"k": (torch.ones(1),)}])
@pytest.mark.parametrize("inside", [list, tuple, lambda items: dict(enumerate(items))])
def test_a_tensor_far_inside_is_found(inside: object, last: object) -> None:
    value = {"log": inside([*({"n": n} for n in range(MANY)), last])}  # type: ignore[operator]
    checkpoint = check(value)
    assert len(checkpoint) == 1
    assert f"log.{MANY - 1}.n" in leaves(checkpoint)


class Made:
    """What pickles as a call of anything with anything."""

    def __init__(self, func: object, *args: object) -> None:
        self.call = func, args

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.mark.parametrize("func", [torch.Size, torch.device])
def test_a_tensor_in_a_call_that_makes_none_is_found(func: object) -> None:
    value = [*([None] * MANY), Made(func, torch.ones(2))]
    assert list(opened(zips.saved(value))) == [f"{MANY}.args.0"]


def test_tensors_without_storages_are_found_too() -> None:
    meta, array = torch.ones(2, device="meta"), np.ones(3)
    checkpoint = opened(zips.saved({"a": [*range(MANY), meta], "b": [*range(MANY), array]}))
    assert list(checkpoint.exotic) == [f"a.{MANY}"]
    assert list(checkpoint) == [f"b.{MANY}"]


def test_attributes_and_objects_are_still_told() -> None:
    ordered = collections.OrderedDict((f"w{n}", n) for n in range(MANY))
    ordered.note = "kept"  # type: ignore[attr-defined]
    found = leaves(opened(zips.saved({"d": ordered, "w": torch.ones(1)})))
    assert found["d.note"] == "kept"
    assert found["d.w7"] == 7


def test_a_list_in_itself_is_still_a_finding() -> None:
    value: list[object] = [[n] for n in range(MANY)]
    value.append(value)
    checkpoint = opened(zips.saved({"w": torch.ones(1), "round": value}))
    assert [finding.detail for finding in checkpoint.findings] == [f"round.{MANY}"]


def test_a_smaller_one_is_told_value_by_value() -> None:
    value = {"w": torch.ones(1), "vocabulary": {f"w{n}": n for n in range(MANY - 1)}}
    assert len(leaves(opened(zips.saved(value)))) == MANY - 1


def test_a_log_of_100_000_records_opens() -> None:
    log = [{"step": n, "loss": n / 7, "rate": 0.1} for n in range(100_000)]
    checkpoint = check({"model": {"w": torch.ones(2)}, "log": log})
    assert set(leaves(checkpoint)) == {"log"}


def test_metadata_beside_a_dict_of_that_name_is_metadata(tmp_path: Path) -> None:
    state = collections.OrderedDict(metadata={"x": torch.ones(1)})
    state.metadata = {"format": "pt"}  # type: ignore[attr-defined]
    (path := tmp_path / "m.pt").write_bytes(zips.saved(state))
    assert writer.read(str(path)).metadata == {"format": "pt"}


def test_a_large_dict_called_metadata_is_no_metadata(tmp_path: Path) -> None:
    pairs = {f"k{n}": "v" for n in range(MANY)}
    (path := tmp_path / "m.pt").write_bytes(zips.saved({"w": torch.ones(1), "metadata": pairs}))
    assert not writer.read(str(path)).metadata

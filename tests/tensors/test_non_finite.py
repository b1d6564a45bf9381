"""NaN, infinity and tensors without elements: `convert` warns, with the counts that torch gives."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt_convert.tensors import non_finite
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.non_finite import NonFiniteCounts, watched
from tests.helpers.running import run

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SMALL = (torch.float8_e4m3fn, torch.float8_e5m2)


def expected(tensor: torch.Tensor) -> dict[str, int]:
    """torch's own counts, of each part of a complex number."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    wide = real.double()
    return {"nan": int(wide.isnan().sum()), "infinite": int(wide.isinf().sum())}


@settings(max_examples=200, deadline=None)
@given(
    dtype=st.sampled_from([*FLOATS, *SMALL, torch.complex64, torch.complex128]),
    data=st.binary(max_size=700),
    cuts=st.lists(st.integers(0, 700), max_size=4),
    with_numpy=st.booleans(),
)
def test_the_counts_are_torchs_however_the_bytes_come(
    dtype: torch.dtype, data: bytes, cuts: list[int], with_numpy: bool
) -> None:
    data = data[: len(data) - len(data) % dtype.itemsize]
    data = data.replace(b"\0", b"\x7f").replace(b"\1", b"\x80").replace(b"\2", b"\xff")
    if not data:
        return
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [memoryview(bytearray(data[a:b])) for a, b in itertools.pairwise(places)]
    pieces[1:2] = [memoryview(data)[a:b] for a, b in itertools.pairwise(places)][1:2]
    found = NonFiniteCounts()
    by_bytes = patch.object(non_finite, "any_non_finite", non_finite.any_by_bytes)
    with patch.dict(sys.modules) if with_numpy else by_bytes:
        passed = b"".join(watched(pieces, BY_NAME[str(dtype)[6:]], found))
    assert passed == data
    assert {"nan": found.nan, "infinite": found.infinite} == expected(tensor)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64])
@pytest.mark.parametrize("form", ["safetensors", "npz", "torch", "npy"])
def test_convert_warns_with_the_counts(dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    bad = torch.randn(300, 400).to(dtype)
    bad[3, 5] = float("nan")
    bad[299, 399] = float("-inf")
    bad[0, :7] = float("inf")
    state = {
        "ok": torch.randn(300, 400).to(dtype),
        "bad": bad,
        "turned": bad.T,
        "n": torch.arange(9),
    }
    state |= {"most": torch.full((300,), torch.finfo(dtype).max, dtype=dtype)}
    torch.save(state, tmp_path / "m.bin")
    done = run("convert", tmp_path / "m.bin", "--to", form, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    told = done.json["not_finite"]
    assert told == {name: expected(state[name].contiguous()) for name in ("bad", "turned")}
    done = run("convert", tmp_path / "m.bin", "--to", form, "-o", tmp_path / "again")
    assert "2 tensors contain values that are not finite (2 NaN and 16 infinite)" in done.err


def test_what_a_cast_makes_infinite_is_lossy_and_no_warning(tmp_path: Path) -> None:
    state = {"a": torch.tensor([1e30, 2.0]), "b": torch.tensor([float("inf"), 1e30, float("nan")])}
    torch.save(state, tmp_path / "m.bin")
    words = ("--dtype", "float16", "-o", tmp_path / "m.safetensors", "--json")
    done = run("convert", tmp_path / "m.bin", *words)
    assert done.json["not_finite"] == {"b": {"nan": 1, "infinite": 1}}
    assert {name: row["overflowed"] for name, row in done.json["lossy"].items()} == {"a": 1, "b": 1}


def test_placeholders_without_elements_are_named(tmp_path: Path) -> None:
    state = {f"h.{i}.weight": torch.empty(0) for i in range(5)} | {"ln.weight": torch.ones(3)}
    torch.save(state, tmp_path / "m.bin")
    done = run("convert", tmp_path / "m.bin", "-o", tmp_path / "m.safetensors")
    assert done.code == 0
    assert "5 tensors have no elements: 5 tensors (h.0.weight, h.1.weight" in done.err
    assert "zero_to_fp32.py" in done.err


def test_finite_weights_give_no_warning(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(1000, 50), "t": torch.randn(50, 60).T}, tmp_path / "m.bin")
    done = run("convert", tmp_path / "m.bin", "-o", tmp_path / "m.npz", "--json")
    assert (done.json["not_finite"], done.json["empty"], done.err) == ({}, [], "")

"""Checkpoints of Flax, written as flax/serialization.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from cgpt_convert.scanning.result import Verdict
from tests.helpers.running import run
from tests.helpers.scan_files import scanned


def extension(value: Any) -> msgpack.ExtType:
    """As `flax.serialization._msgpack_ext_pack` does it."""
    if isinstance(value, np.ndarray):
        return msgpack.ExtType(1, array(value))
    if isinstance(value, complex):
        return msgpack.ExtType(2, msgpack.packb((value.real, value.imag)))
    return msgpack.ExtType(3, array(np.asarray(value)))


def array(value: Any) -> bytes:
    data = (value.shape, value.dtype.name, value.tobytes("C"))
    return bytes(msgpack.packb(data, use_bin_type=True))


def packed(value: Any) -> bytes:
    return bytes(msgpack.packb(value, default=extension, strict_types=True))


WEIGHTS: dict[str, Any] = {"params": {"dense": {"kernel": np.ones((3, 4), np.float32)}}}
FLAX = {
    "nested": WEIGHTS,
    "a training state": {**WEIGHTS, "step": np.int32(3), "opt": {"0": {"mu": np.zeros(70_000)}}},
    "many": {f"layer{index}": np.ones(index) for index in range(300)},
    "plain values": {**WEIGHTS, "a": [1, -1, 300, -70_000, 2**40, 0.5, None, True, "x" * 300]},
    "other types": {
        str(kind): np.ones(2, kind) for kind in ("bool", "int8", "uint64", "float16", "complex64")
    },
    "complex": {**WEIGHTS, "c": 1 + 2j},
    "in chunks": {
        "w": {
            "__msgpack_chunked_array__": True,
            "shape": {"0": 2, "1": 2},
            "chunks": {"0": np.ones(2), "1": np.ones(2)},
        }
    },
    "a scalar": {"w": np.array(1.0)},
}


@pytest.mark.parametrize("name", FLAX)
def test_weights_are_clean(name: str, tmp_path: Path) -> None:
    data = packed(FLAX[name])
    for call in ("flax_model.msgpack", "weights"):
        assert scanned(data, tmp_path, name=call).verdict is Verdict.CLEAN
    assert "(Flax checkpoint)" in run("scan", tmp_path / "flax_model.msgpack").out


OTHERS = {
    "another extension": packed({**WEIGHTS, "x": msgpack.ExtType(5, b"abc")}),
    "a time": packed({**WEIGHTS, "x": msgpack.Timestamp(1)}),
    "objects": packed(WEIGHTS).replace(b"\xa7float32", b"\xa7object_"),
    "a type that is a number": packed(WEIGHTS).replace(b"\xa7float32", b"\xe7float32"),
    "no array": packed({"a": 1, "b": "c\0"}),
    "keys that are numbers": packed({**WEIGHTS, 1: 2}),
    "more behind": packed(WEIGHTS) + b"\0",
    "a list": packed([WEIGHTS, 1]),
    "an array alone": packed(np.ones(2)),
    "a pickle inside an extension": packed({**WEIGHTS, "x": msgpack.ExtType(1, b"\x80\2N.")}),
    "deep": packed({**WEIGHTS, "x": eval("[" * 90 + "]" * 90)}).replace(b"\x91", b"\x91" * 4),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_trees_are_not_scanned(name: str, tmp_path: Path) -> None:
    assert scanned(OTHERS[name], tmp_path, name="a.msgpack").verdict is Verdict.NOT_SCANNED


def test_cut_off_weights_are_not_scanned(tmp_path: Path) -> None:
    data = packed(FLAX["plain values"])
    for cut in range(1, len(data)):
        assert scanned(data[:cut], tmp_path, name="a.msgpack").verdict is Verdict.NOT_SCANNED

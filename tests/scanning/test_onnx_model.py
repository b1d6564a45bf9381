"""ONNX models: those that only compute are clean, all others are not scanned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cgpt_convert.scanning.result import Verdict
from tests.helpers.scan_files import scanned, zipped

WEIGHT = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
FLOATS = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
RESULT = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])


def graph(*nodes: Any, **more: Any) -> Any:
    return helper.make_graph(list(nodes), "g", [FLOATS], [RESULT], [WEIGHT], **more)


def model(*nodes: Any, **more: Any) -> bytes:
    inner = more.pop("graph", None) or graph(*nodes)
    made = helper.make_model(inner, producer_name="pytorch", **more)
    return bytes(made.SerializeToString())


def operator(name: str, domain: str = "", **attributes: Any) -> Any:
    return helper.make_node(name, ["x", "w"], ["y"], domain=domain, **attributes)


def branch(node: Any) -> Any:
    """A graph that another operator holds."""
    return helper.make_graph([node], "then", [], [RESULT])


def verdict(data: bytes, folder: Path) -> Verdict:
    onnx.load_from_string(data)
    return scanned(data, folder, name="model.onnx").verdict


def placed(location: str) -> bytes:
    """A model whose weight is in another file."""
    tensor = TensorProto(name="e", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    inner = helper.make_graph([operator("Add")], "g", [FLOATS], [RESULT], [tensor])
    return model(graph=inner)


FUNCTION = helper.make_function(
    "own", "F", ["x", "w"], ["y"], [operator("Add")], [helper.make_opsetid("", 18)]
)
BAD_FUNCTION = helper.make_function(
    "own", "F", ["x", "w"], ["y"], [operator("PyOp", "team")], [helper.make_opsetid("team", 1)]
)
SPARSE = helper.make_sparse_tensor(
    numpy_helper.from_array(np.ones(1, np.float32), "s"),
    numpy_helper.from_array(np.zeros(1, np.int64), "i"),
    [2, 2],
)
PLAIN = {
    "a sum": model(operator("Add")),
    "of the runtime": model(operator("FusedMatMul", "com.microsoft")),
    "a branch": model(operator("If", then_branch=branch(operator("Add")))),
    "attributes": model(operator("Conv", ints=[1, 2], f=1.0, s="a", fs=[1.0, 2.0], t=WEIGHT)),
    "a function": model(operator("F", "own"), functions=[FUNCTION]),
    "data beside it": placed("model.onnx_data"),
    "data in a folder": placed("weights/model 0.bin"),
    "a sparse weight": model(graph=graph(operator("Add"), sparse_initializer=[SPARSE])),
    "every type": model(
        graph=helper.make_graph(
            [operator("Add")],
            "g",
            [],
            [],
            [
                helper.make_tensor(f"t{kind}", kind, [1], [1])
                for kind in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16)
            ],
        )
    ),
}
OTHER = {
    "of another library": model(operator("PyOp", "team")),
    "of Python": model(operator("PythonOp", "com.microsoft")),
    "compiled code": model(operator("EPContext", "com.microsoft")),
    "in a branch": model(operator("If", then_branch=branch(operator("PyOp", "team")))),
    "in a function": model(operator("F", "own"), functions=[BAD_FUNCTION]),
    "a function that is not there": model(operator("G", "own"), functions=[FUNCTION]),
    "data of another user": placed("/etc/passwd"),
    "data above": placed("../secret"),
    "data above, later": placed("a/../../secret"),
    "data above, with Windows": placed("..\\secret"),
    "data of Windows": placed("C:/secret"),
    "data of nowhere": placed(""),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_model_that_only_computes_is_clean(name: str, tmp_path: Path) -> None:
    assert verdict(PLAIN[name], tmp_path) is Verdict.CLEAN
    assert scanned(zipped({"model.onnx": PLAIN[name]}), tmp_path).verdict is Verdict.CLEAN


@pytest.mark.parametrize("name", OTHER)
def test_a_model_that_may_load_more_is_not_scanned(name: str, tmp_path: Path) -> None:
    assert verdict(OTHER[name], tmp_path) is Verdict.NOT_SCANNED
    assert scanned(zipped({"model.onnx": OTHER[name]}), tmp_path).verdict is Verdict.NOT_SCANNED


def is_read(data: bytes) -> bool:
    try:
        onnx.load_from_string(data)
    except Exception:  # noqa: BLE001  protobuf has a class of its own for each implementation
        return False
    return True


def test_damage_and_unknown_fields_are_not_scanned(tmp_path: Path) -> None:
    whole = PLAIN["a function"]
    cut = [whole[:size] for size in range(24, len(whole)) if not is_read(whole[:size])]
    assert len(cut) > len(whole) // 2
    fields = (b"\x98\x01\x01", b"\x9a\x06\x01a", b"\x0b\x0c", b"\x3a\x05\x0a")
    for data in (*cut, *(whole + field for field in fields)):
        assert verdict_of(data, tmp_path) is Verdict.NOT_SCANNED


def verdict_of(data: bytes, folder: Path) -> Verdict:
    return scanned(data, folder, name="model.onnx").verdict


def test_two_domains_of_one_operator_are_not_scanned(tmp_path: Path) -> None:
    """Protocol buffers take the last of two."""
    node = operator("PyOp", "team").SerializeToString()
    twice = node + b"\x3a\x00"
    assert onnx.NodeProto.FromString(twice).domain == ""
    assert onnx.NodeProto.FromString(b"\x3a\x00" + node).domain == "team"
    inner = b"\x0a" + bytes([len(node) + 2]) + b"\x3a\x00" + node
    data = b"\x08\x08\x12\x07pytorch\x3a" + bytes([len(inner)]) + inner
    assert verdict(data, tmp_path) is Verdict.NOT_SCANNED


def test_a_pickle_that_is_called_a_model_is_judged_as_a_pickle(tmp_path: Path) -> None:
    data = b"\x80\2cposix\nsystem\nX\2\0\0\0id\x85R."
    assert verdict_of(data, tmp_path) is Verdict.DANGEROUS
    assert verdict_of(PLAIN["a sum"] + zipped({"a.pkl": data}), tmp_path) is not Verdict.CLEAN

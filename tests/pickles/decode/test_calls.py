"""Names, calls and references: recorded, never looked up or made."""

from __future__ import annotations

import codecs
import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.pickles.decode.decoder import decode
from cgpt_convert.pickles.nodes import Call, Global, PersistentId, text
from tests.helpers.pickle_agreement import PROTOCOLS, tree


class _Payload:
    """Runs a shell command when it is loaded by anything that calls."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_16_nothing_is_imported_or_called(protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "owned"
    payload = pickle.dumps({"w": _Payload(target)}, protocol)
    codecs.lookup("raw_unicode_escape")  # a module of Python's, of protocol 0's text
    modules = set(sys.modules)
    decoded = decode(payload)
    checkpoint = tree(payload)
    assert not target.exists()
    assert set(sys.modules) == modules
    assert ("posix", "system") in decoded.globals
    assert [leaf.path for leaf in checkpoint.others] == ["w"]
    assert "touch" in text(checkpoint.others[0].value)
    pickle.loads(payload)
    assert target.exists()  # so the payload would have worked


@pytest.mark.parametrize("module", ["antigravity", "this", "no_such_module", "torch.evil.sub"])
def test_16_modules_are_not_imported(module: str) -> None:
    for data in (
        f"c{module}\nname\n.".encode(),
        f"(i{module}\nname\n.".encode(),
        b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c\x04name\x93.",
    ):
        assert list(decode(data).globals) == [(module, "name")]
        assert module not in sys.modules


def test_16_names_are_compared_whole() -> None:
    for module, name in (
        ("torch._utils.evil", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_tensor_v2.evil"),
        ("torch", "EvilTensor"),
        ("torch", "Tensor.__setstate__"),
        ("collections", "OrderedDict.__init__"),
        ("TORCH._utils", "_rebuild_tensor_v2"),
    ):
        call = f"c{module}\n{name}\n)R.".encode()
        checkpoint = tree(call)
        assert not checkpoint.tensors
        assert [leaf.path for leaf in checkpoint.others] == [""]


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (b"cos\nsystem\n(X\1\0\0\0atR.", "REDUCE"),
        (b"cos\nsystem\n(X\1\0\0\0at\x81.", "NEWOBJ"),
        (b"cos\nsystem\n(X\1\0\0\0at}\x92.", "NEWOBJ_EX"),
        (b"(S'a'\nios\nsystem\n.", "INST"),
        (b"(cos\nsystem\nS'a'\no.", "OBJ"),
    ],
)
def test_17_every_way_to_call_is_recorded(data: bytes, how: str) -> None:
    call = decode(data).value
    assert isinstance(call, Call)
    assert (str(call.func), call.args, call.how) == ("os.system", ("a",), how)


def test_17_calling_what_is_no_class_is_recorded_too() -> None:
    call = decode(b"N)R.").value
    assert isinstance(call, Call)
    assert call.func is None
    other = tree(b"N)R.").others[0].value
    assert isinstance(other, Call)
    assert other.func is None


def test_17_build_is_recorded_and_not_run() -> None:
    call = decode(b"cos\nenviron\n)R}X\1\0\0\0aNsb.").value
    assert isinstance(call, Call)
    assert call.state.items == [("a", None)]


@pytest.mark.parametrize("data", [b"cos\nenviron\n}b.", b"}}b.", b"]}b.", b"K\1}b.", b"N}b."])
def test_17_build_on_what_was_not_made_by_a_call_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed, match="a state is set on"):
        decode(data)


def test_17_build_twice_is_refused() -> None:
    with pytest.raises(Malformed, match="twice"):
        decode(b"ccollections\nOrderedDict\n)R}b}b.")


@pytest.mark.parametrize("data", [b"\x82\1.", b"\x83\1\0.", b"\x84\1\0\0\0."])
def test_18_extension_codes_are_not_supported(data: bytes) -> None:
    with pytest.raises(Unsupported, match="extension code 1"):
        decode(data)


@pytest.mark.parametrize("data", [b"\x97.", b"N\x98."])
def test_18_out_of_band_buffers_are_not_supported(data: bytes) -> None:
    with pytest.raises(Unsupported, match="out-of-band"):
        decode(data)


def test_18_persistent_ids_are_recorded_in_both_forms() -> None:
    for data, reference in ((b"Pstorage\n.", "storage"), (b"(K\1K\2tQ.", (1, 2))):
        value = decode(data).value
        assert isinstance(value, PersistentId)
        assert value.value == reference


def test_18_persistent_id_where_no_storage_belongs_is_a_leaf() -> None:
    assert [leaf.path for leaf in tree(b"}X\1\0\0\0aPevil\ns.").others] == ["a"]


def test_19_pickle_inside_a_pickle_is_just_bytes() -> None:
    inner = pickle.dumps(os.system, 2)
    nbytes = struct.pack("<I", len(inner))
    data = b"ctorch.storage\n_load_from_bytes\n(B" + nbytes + inner + b"tR."
    decoded = decode(data)
    assert list(decoded.globals) == [("torch.storage", "_load_from_bytes")]
    assert decoded.value.args == (inner,)
    assert not tree(data).tensors


def test_globals_are_told_with_their_first_position() -> None:
    decoded = decode(b"(cos\nsystem\ncos\nsystem\nca\nb\nt.")
    assert decoded.globals == {("os", "system"): 1, ("a", "b"): 23}
    assert isinstance(decoded.value[0], Global)
    assert decoded.value[0] is decoded.value[1]

"""Our pickle decoder against Python's, and pickles made to harm. Numbers are hostile.md's."""

from __future__ import annotations

import codecs
import collections
import math
import os
import pickle
import pickletools
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt_convert import findings, limits
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.containers.torchzip import ZipStorages
from cgpt_convert.errors import CgptError, Malformed, Unsupported
from cgpt_convert.inert import Call, Dict, Global, PersistentId, Set, Value, text
from cgpt_convert.pickles import unpickle
from cgpt_convert.pickles.arguments import Incomplete
from cgpt_convert.pickles.tree import fill
from cgpt_convert.pickles.unpickle import decode
from cgpt_convert.source import MemoryBytes
from tests.mutations import mutated

PROTOCOLS = range(6)


def loaded(value: Value) -> Any:
    """What Python's pickle would have made of an inert tree of plain values."""
    match value:
        case Dict():
            return {loaded(key): loaded(item) for key, item in value.items}
        case Set():
            members = map(loaded, value.members)
            return frozenset(members) if value.frozen else set(members)
        case Call():
            return _called(value)
        case list():
            return [loaded(item) for item in value]
        case tuple():
            return tuple(loaded(item) for item in value)
    return value


def _called(call: Call) -> Any:
    """The builtins and codecs that old protocols write plain values with."""
    known: dict[str, Callable[..., Any]] = {
        "_codecs.encode": codecs.encode,
        "builtins.bytearray": bytearray,
        "builtins.bytes": bytes,
        "builtins.complex": complex,
        "builtins.frozenset": frozenset,
        "builtins.set": set,
        "collections.OrderedDict": collections.OrderedDict,
    }
    name = str(call.func).replace("__builtin__", "builtins")
    made = known[name](*loaded(call.args))
    for key, item in call.items:
        made[loaded(key)] = loaded(item)
    return made


def same(one: Any, other: Any) -> bool:
    """Equal, with types, order of dicts, the sign of zero and NaN taken into account."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(same, one.items(), other.items()))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def tree(data: bytes) -> Checkpoint:
    """What the walk over names makes of a pickle without storages."""
    checkpoint = Checkpoint("x.bin", "test", (MemoryBytes("x.bin", b""),), {})
    fill(checkpoint, decode(data), _NoStorages())
    return checkpoint


class _NoStorages(ZipStorages):
    def __init__(self) -> None:
        pass


@contextmanager
def bounded(seconds: float = 60, nbytes: int = 1 << 30) -> Iterator[None]:
    """Generous bounds, far below what the attacks ask for: hours, and terabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < nbytes


# -- against Python's pickle

hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 80), 1 << 80)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
values = st.recursive(
    hashable | st.floats() | st.binary(max_size=300).map(bytearray) | st.sets(hashable, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(hashable, inner, max_size=5)
        | st.dictionaries(hashable, inner, max_size=3).map(collections.OrderedDict)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=60, deadline=None)
@given(value=values)
def test_plain_values_are_what_pickle_reads(protocol: int, value: Any) -> None:
    data = pickle.dumps(value, protocol)
    decoded = decode(data)
    assert same(loaded(decoded.value), pickle.loads(data))
    assert decoded.end == len(data)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        *(0, 1, -1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**63, -(2**2000), True),
        *("", "a" * 255, "a" * 256, "é" * 300, "\ud800", "new\nline \\ and ' \"", "\0\x1a"),
        *(b"", b"a" * 256, bytes(range(256)) * 300, 1.5, -0.0, math.inf, math.nan, 1e-320, 3j),
        *(list(range(2500)), dict.fromkeys(range(2500)), tuple(range(4)), set(range(9)), ()),
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:9].encode('unicode_escape').decode()}",
)
def test_values_at_the_edges_of_opcodes(protocol: int, value: Any) -> None:
    data = pickle.dumps(value, protocol)
    if isinstance(value, bytes) and len(value) > limits.PICKLE.line_bytes and protocol == 0:
        with pytest.raises(Unsupported, match="text argument"):
            decode(data)
        return
    assert same(loaded(decode(data).value), pickle.loads(data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shared_values_stay_one_value(protocol: int) -> None:
    shared = [1]
    value = decode(pickle.dumps([shared, shared, [1]], protocol)).value
    assert value[0] is value[1] is not value[2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_classes_are_names_and_their_instances_are_recorded_calls(protocol: int) -> None:
    decoded = decode(pickle.dumps(Path("a/b"), protocol))
    assert isinstance(decoded.value, Call)
    assert all(isinstance(module, str) for module, _ in decoded.globals)
    assert (type(Path()).__module__, "PosixPath") in decoded.globals


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"(lp0\nI1\naI01\naI00\na.", [1, True, False]),
        (b"(dp0\nS'a'\np1\nL5L\ns.", {"a": 5}),
        (b"(S'it\\'s'\nS\"two\\x41\\n\"\nt.", ("it's", "twoA\n")),
        (b"(I1\nI2\n0I3\nt.", (1, 3)),
        (b"(I1\n(I2\nI3\n1I4\nt.", (1, 4)),
        (b"I1\n2\x86.", (1, 1)),
        (b"(U\x03abcT\x02\x00\x00\x00det.", ("abc", "de")),
        (b"(F1.5\nF-1e+20\nt.", (1.5, -1e20)),
        (b"(V\\u00e9\\x41\nt.", ("é\\x41",)),
    ],
)
def test_text_opcodes_and_python_2_strings(data: bytes, value: Any) -> None:
    assert loaded(decode(data).value) == value == pickle.loads(data)


def test_python_2_bytes_that_are_not_ascii_stay_bytes() -> None:
    data = b"U\x02\xff\xfe."
    assert decode(data).value == b"\xff\xfe" == pickle.loads(data, encoding="bytes")


def test_several_pickles_in_a_row_are_read_one_by_one() -> None:
    data = pickle.dumps(1, 2) + pickle.dumps([2], 4) + pickle.dumps("3", 0)
    first = decode(data)
    second = decode(data, start=first.end)
    third = decode(data, start=second.end)
    assert [first.value, second.value, third.value] == [1, [2], "3"]
    assert third.end == len(data)


# -- damage


SAMPLE = pickle.dumps(
    {
        "a": [1, 2.5, "text", b"bytes", None, True, 1 << 70],
        "b": ({"k": {1, 2}}, frozenset({3}), bytearray(b"x"), Path("p")),
    },
    4,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_incomplete(protocol: int) -> None:
    data = pickle.dumps(pickle.loads(SAMPLE), protocol)
    for length in range(len(data)):
        with pytest.raises(Incomplete):
            decode(data[:length])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=100, deadline=None)
@given(draw=st.data())
def test_damage_raises_only_our_errors(protocol: int, draw: st.DataObject) -> None:
    data = draw.draw(mutated(pickle.dumps(pickle.loads(SAMPLE), protocol)))
    with suppress(CgptError):
        tree(data)


@settings(max_examples=300, deadline=None)
@given(
    data=st.lists(
        st.sampled_from([bytes([code]) for code in range(256)])
        | st.sampled_from([b"}", b"]", b")", b"(", b"N", b"q\0", b"h\0", b"a", b"s", b"b", b"R"])
        | st.sampled_from([b"cos\nsystem\n", b"K\1", b"X\1\0\0\0a", b"\x85", b"\x86", b"\x94"]),
        max_size=40,
    ).map(lambda parts: b"".join(parts) + b".")
)
def test_any_bytes_raise_only_our_errors(data: bytes) -> None:
    with suppress(CgptError):
        tree(data)


def test_errors_name_the_byte() -> None:
    with pytest.raises(Malformed, match=r"at byte 4 of the pickle"):
        decode(b"\x80\x02NN\xff.")


# -- the pickle classes of hostile.md


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
    assert tree(b"N)R.").others[0].value.func is None


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


def doublings(levels: int) -> bytes:
    """Lists of two of the list before: 2 ** levels leaves in 10 bytes each."""
    parts = [b"]q\x00"]
    for level in range(levels):
        get = b"h" + bytes([level])
        parts.append(b"0](" + get + get + b"eq" + bytes([level + 1]))
    return b"".join(parts) + b"."


def test_20_memo_doubling_costs_little() -> None:
    with bounded(), pytest.raises(Unsupported, match="shared"):
        tree(doublings(90))
    with bounded():
        assert text(decode(doublings(90)).value).endswith("...")


def test_20_wide_sharing_costs_little() -> None:
    nulls, ones = b"](" + b"N" * 2000 + b"eq\0", b"](" + b"h\0" * 2000 + b"eq\1"
    with bounded(), pytest.raises(Unsupported, match="shared"):
        tree(nulls + b"0" + ones + b"0](" + b"h\1" * 2000 + b"e.")


def test_20_sharing_as_checkpoints_have_it_is_fine() -> None:
    shared = {"betas": [0.9, 0.999]}
    checkpoint = tree(pickle.dumps({str(n): shared for n in range(1000)}, 2))
    assert len(checkpoint.others) == 1000


LEVELS = 50_000
DEEP = {
    "lists": b"]" * LEVELS + b"a" * (LEVELS - 1) + b".",
    "tuples": b"N" + b"\x85" * LEVELS + b".",
    "dicts": b"}K\1" * LEVELS + b"N" + b"s" * LEVELS + b".",
    "marks": b"(" * LEVELS + b".",
    "sets": b"cbuiltins\nset\nq\0]q\1" + b"0h\0h\1\x85Rq\1" * LEVELS + b".",
    "ordered dicts": b"ccollections\nOrderedDict\nq\0]q\1" + b"0h\0h\1\x85Rq\1" * LEVELS + b".",
    "foreign objects": b"cmy\nClass\nq\0]q\1" + b"0h\0h\1\x85Rq\1" * LEVELS + b".",
    "parameters": b"ctorch._utils\n_rebuild_parameter\nq\0Nq\1"
    + b"0h\0h\1\x88N\x87Rq\1" * LEVELS
    + b".",
    "subclasses": b"ctorch._tensor\n_rebuild_from_type_v2\nq\0)q\1"
    + b"0(h\0Nh\1Ntq\1" * LEVELS
    + b"0h\0h\1R.",
}


@pytest.mark.parametrize("kind", DEEP)
def test_20_deep_nesting_is_refused_and_overflows_no_stack(kind: str) -> None:
    with bounded(), pytest.raises(CgptError):
        tree(DEEP[kind])


def test_20_giant_integers_are_not_converted() -> None:
    size = 4_000_000
    with bounded(5), pytest.raises(Unsupported, match="an integer of 4,000,000 bytes"):
        decode(b"\x8b" + struct.pack("<i", size) + b"\xff" * size + b".")
    with bounded(5), pytest.raises(Unsupported, match="text argument"):
        decode(b"I" + b"9" * size + b"\n.")
    with bounded(5), pytest.raises(Unsupported, match="text argument"):
        decode(b"L" + b"9" * size + b"L\n.")


def test_20_negative_lengths_are_refused() -> None:
    for code in (b"\x8b", b"T"):
        with pytest.raises(Malformed, match="negative length"):
            decode(code + struct.pack("<i", -1) + b".")


@pytest.mark.parametrize("code", [b"X", b"B", b"\x8d", b"\x8e", b"\x96", b"\x95"])
def test_20_huge_lengths_allocate_nothing(code: bytes) -> None:
    wide = code in (b"\x8d", b"\x8e", b"\x96", b"\x95")
    length = struct.pack("<Q", 1 << 62) if wide else struct.pack("<I", 0xFFFFFFFF)
    with bounded(5, 1 << 26), pytest.raises(Incomplete):
        decode(code + length + b"abc.")


@pytest.mark.parametrize("data", [b"", b"N", b"\x80\x02", b"(((", b"K"])
def test_20_missing_stop_is_incomplete(data: bytes) -> None:
    with pytest.raises(Incomplete):
        decode(data)


def test_20_bytes_after_stop_are_not_read_but_told() -> None:
    assert decode(b"N." + b"cos\nsystem\n").end == 2


@pytest.mark.parametrize("data", [b"NN.", b"(.", b".", b"(N."])
def test_20_stop_with_anything_but_one_value_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


def test_20_huge_memo_index_allocates_nothing() -> None:
    with bounded(5, 1 << 26):
        assert decode(b"Nr\xff\xff\xff\xff.").value is None
        assert decode(b"Np4294967295\n0g4294967295\n.").value is None


def test_20_memo_read_before_it_is_written_is_refused() -> None:
    for data in (b"h\0.", b"j\0\0\0\1.", b"g5\n."):
        with pytest.raises(Malformed, match="before it is written"):
            decode(data)
    with pytest.raises(Malformed, match="negative memo index"):
        decode(b"Np-1\n.")


def test_20_number_of_opcodes_and_of_values_is_bounded() -> None:
    ten = limits.Share(10, 1000, 10)
    small = limits.PICKLE._replace(opcodes=100, kept=ten, memo=ten, depth=5, nbytes=300)
    for data, what in (
        (b"N0" * 60 + b"N.", "opcodes"),
        (b"](" + b"}" * 20 + b"e.", "lists, dicts and calls"),
        (b"N" + b"\x94" * 30 + b".", "memo"),
        (b"(" * 6 + b".", "deeper"),
        (b"N" * 301, "300 bytes"),
    ):
        with pytest.raises(Unsupported, match=what):
            decode(data, small)


@pytest.mark.parametrize(
    "line",
    [
        *(b"I010", b"I0x10", b"I1_0", b"I 1", b"I1 ", b"I", b"I--1", b"L0x1L", b"I1L"),
        *(b"F1_0.0", b"F 1", b"F", b"F0x1p3", b"F1,5"),
    ],
)
def test_20_numbers_that_readers_take_differently_are_refused(line: bytes) -> None:
    with pytest.raises(Malformed):
        decode(line + b"\n.")


@pytest.mark.parametrize(
    "line", [b"Sabc", b"S'abc", b"S'abc\"", b"S'", b"S", b"S'\\x4'", b"S'\\q'", b"S 'abc'"]
)
def test_20_strings_that_repr_does_not_write_are_refused(line: bytes) -> None:
    with pytest.raises(Malformed):
        decode(line + b"\n.")


def test_20_protocols_of_the_future_are_not_supported() -> None:
    with pytest.raises(Unsupported, match="protocol 6"):
        decode(b"\x80\x06N.")


@pytest.mark.parametrize(
    "data",
    [
        *(b"]NNs.", b"K\1NNs.", b"X\1\0\0\0aNNs.", b"N(NNu.", b")NNs."),  # SETITEM(S)
        *(b"}Na.", b")Na.", b"K\1(Ne.", b"B\1\0\0\0xNa.", b"cos\nenviron\nNa."),  # APPEND(S)
        *(b"](N\x90.", b"}(N\x90.", b"(N\x91(N\x90."),  # ADDITEMS
    ],
)
def test_21_items_are_set_on_nothing_but_what_takes_them(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


def test_21_odd_number_of_keys_and_values_is_refused() -> None:
    for data in (b"}(NNNu.", b"(Nd."):
        with pytest.raises(Malformed, match="odd number"):
            decode(data)


def test_22_cycles_are_found_and_walked_once() -> None:
    for data in (
        b"]q\0h\0a.",
        b"}q\0X\1\0\0\0ah\0s.",
        b"]q\0(h\0ta.",
        b"ccollections\nOrderedDict\n)Rq\0X\1\0\0\0ah\0s.",
    ):
        checkpoint = tree(data)
        assert [f.rule for f in checkpoint.findings] == [findings.CYCLE]
        assert len(text(decode(data).value)) < 300


def test_22_foreign_object_that_knows_its_parent_is_no_finding() -> None:
    checkpoint = tree(b"cmy\nModule\n)Rq\0}X\6\0\0\0parenth\0sb.")
    assert checkpoint.findings == []


def test_23_keys_of_any_type_are_shown_and_never_hashed() -> None:
    data = b"}(]K\1K\2\x85K\3}K\4NK\5G\x7f\xf8\0\0\0\0\0\0K\6u."
    names = [leaf.path for leaf in tree(data).others]
    assert names == ["[]", "(2,)", "{}", "None", "nan"]


def test_23_key_that_comes_twice_is_listed_twice() -> None:
    assert [(leaf.path, leaf.value) for leaf in tree(b"}(K\1K\2K\1K\3u.").others] == [
        ("1", 2),
        ("1", 3),
    ]


def test_23_nested_tuples_as_keys_cost_little() -> None:
    key = b"N" + b"q\1h\1\x86" * 200
    with bounded(10):
        checkpoint = tree(b"}" + key + b"K\1s.")
    assert len(checkpoint.others) == 1
    assert len(checkpoint.others[0].path) < 300


def test_every_opcode_of_this_python_is_known() -> None:
    assert all(unpickle._DISPATCH[ord(info.code)] for info in pickletools.opcodes)


def test_globals_are_told_with_their_first_position() -> None:
    decoded = decode(b"(cos\nsystem\ncos\nsystem\nca\nb\nt.")
    assert decoded.globals == {("os", "system"): 1, ("a", "b"): 23}
    assert isinstance(decoded.value[0], Global)
    assert decoded.value[0] is decoded.value[1]

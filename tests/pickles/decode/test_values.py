"""Plain values against Python's pickle; then damage."""

from __future__ import annotations

import collections
import math
import pickle
import pickletools
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt_convert.core import limits
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.pickles.decode.argument_reader import Incomplete
from cgpt_convert.pickles.decode.decoder import decode
from cgpt_convert.pickles.decode.opcode_table import OPCODES
from cgpt_convert.pickles.nodes import Call
from tests.helpers.mutations import mutated
from tests.helpers.pickle_agreement import PROTOCOLS, loaded, same, tree

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


def test_the_opcodes_are_those_of_the_standard_library() -> None:
    assert {
        ord(info.code): (info.name, info.arg.name if info.arg else "")
        for info in pickletools.opcodes
    } == OPCODES

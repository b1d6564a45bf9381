"""Pickles made to cost much, or to be read in two ways."""

from __future__ import annotations

import pickle
import struct
from contextlib import suppress

import pytest

from cgpt_convert.core import findings, limits
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.pickles.decode.argument_reader import Incomplete
from cgpt_convert.pickles.decode.decoder import decode
from cgpt_convert.pickles.nodes import text
from tests.helpers.pickle_agreement import bounded, tree


def doublings(levels: int) -> bytes:
    """Lists of two of the list before: 2 ** levels leaves in 10 bytes each."""
    parts = [b"]q\x00"]
    for level in range(levels):
        get = b"h" + bytes([level])
        parts.append(b"0](" + get + get + b"eq" + bytes([level + 1]))
    return b"".join(parts) + b"."


def test_20_memo_doubling_costs_little() -> None:
    with bounded(), pytest.raises(Unsupported, match="too many"):
        tree(doublings(90))
    with bounded():
        assert text(decode(doublings(90)).value).endswith("...")


def shared_widely(width: int) -> bytes:
    nulls, ones = b"](" + b"N" * width + b"eq\0", b"](" + b"h\0" * width + b"eq\1"
    return nulls + b"0" + ones + b"0](" + b"h\1" * width + b"e."


def test_20_wide_sharing_costs_little() -> None:
    with bounded(), pytest.raises(Unsupported, match="shared"):
        tree(shared_widely(900))
    with bounded():  # so large that all of it is one value
        assert len(tree(shared_widely(2000)).others) == 1


MANY = 20_000
LARGE = {  # containers of values that are not plain, in memo 0
    "set": b"\x8f(" + b"](NNe" * MANY + b"\x90\x940",
    "frozen set": b"(" + b"](NNe" * MANY + b"\x91\x940",
    "called set": b"cbuiltins\nset\n)R(" + b"](NNe" * MANY + b"\x90\x940",
    "plain set": b"\x8f(" + b"K\1" * 5 * MANY + b"\x90\x940",
    "ordered dict": b"ccollections\nOrderedDict\n)R(" + b"N](NNe" * MANY + b"u\x940",
    "ordered dict of pairs": b"ccollections\nOrderedDict\n]("
    + b"](N](NNee" * MANY
    + b"e\x85R\x940",
    "dict": b"}(" + b"N](NNe" * MANY + b"u\x940",
    "list": b"](" + b"](NNe" * MANY + b"e\x940",
}


@pytest.mark.parametrize("kind", LARGE)
def test_20_a_large_container_under_many_names_costs_little(kind: str) -> None:
    data = LARGE[kind] + b"(" + b"h\0" * 100_000 + b"NQl."
    with bounded(10), suppress(Unsupported):  # it took a minute and more
        tree(data)


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
    with bounded(5), pytest.raises(Unsupported, match="an integer is too large: 4,000,000 bytes"):
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
    ten = limits.SizeLimit(10, 1000, 10)
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
    for data in (b"}(NNNu.", b"(Nd."):  # codespell:ignore
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


@pytest.mark.parametrize("again", [b"K\1", b"\x88", b"G\x3f\xf0\0\0\0\0\0\0"])
def test_23_of_a_key_that_comes_twice_the_last_value_counts(again: bytes) -> None:
    """1, True and 1.0 are equal; a dict keeps the first key and the last value."""
    found = tree(b"}(K\1K\2K\5K\6" + again + b"K\3u.").others
    assert [(leaf.path, leaf.value) for leaf in found] == [("1", 3), ("5", 6)]


def test_23_keys_of_other_types_are_not_equal() -> None:
    found = tree(b"}(K\1K\2X\1\0\0\x001K\3C\x011K\4K\1\x85K\5u.").others
    assert [leaf.value for leaf in found] == [2, 3, 4, 5]


def test_23_nested_tuples_as_keys_cost_little() -> None:
    key = b"N" + b"q\1h\1\x86" * 200
    with bounded(10):
        checkpoint = tree(b"}" + key + b"K\1s.")
    assert len(checkpoint.others) == 1
    assert len(checkpoint.others[0].path) < 300

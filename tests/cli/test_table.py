"""Tables on terminals: what is dropped, what is shortened, and what never happens."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt_convert.cli.table import columns, cut, table, wrapped

NAMES = st.lists(
    st.text("ab.層é_0123456789", min_size=1, max_size=60), min_size=1, max_size=8, unique=True
)
HEADER = ("name", "dtype", "shape", "offset", "tied to")


def lines_at(
    monkeypatch: pytest.MonkeyPatch, room: int | None, *words: object, **more: object
) -> list[str]:
    """The lines of a table on a terminal so many columns wide; None: a pipe."""
    monkeypatch.setattr("cgpt_convert.cli.table.width", lambda **_: room)
    return table(*words, **more)  # type: ignore[arg-type]


def row(name: str) -> list[str]:
    return [name, "float32", "4x4", f"{len(name)}", ""]


@settings(max_examples=300)
@given(NAMES, st.integers(20, 130))
def test_names_stay_distinct_and_lines_fit(names: list[str], room: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lines = lines_at(patch, room, HEADER, [row(name) for name in names])
    stacked = lines[0] == "name"
    shown = [line.split("  ")[0].rstrip() for line in lines[1:]]
    note = next((n for n, line in enumerate(lines) if line.startswith("columns not shown")), None)
    firsts = lines[2:note:2] if stacked else shown[: len(names)]
    assert len(firsts) == len(set(firsts)) == len(names)
    for name, first in zip(names, firsts, strict=True):
        beginning, mark, end = first.partition("…")
        assert name == first or (mark and name.startswith(beginning) and name.endswith(end))
        assert columns(first) <= room or first == name
    assert all(columns(line) <= room or " " not in line for line in lines)


def test_optional_columns_go_before_names_are_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"model.layers.{n}.self_attn.q_proj.weight" for n in (9, 10)]
    rows = [[name, "bfloat16", "64x64", "123456", ""] for name in names]

    def header(room: int | None) -> list[str]:
        lines = lines_at(monkeypatch, room, HEADER, rows, optional=("offset", "shape"))
        assert lines[1].startswith(names[0])
        return lines[0].split()

    assert header(None) == header(64) == ["name", "dtype", "shape", "offset"]
    assert header(63) == header(56) == ["name", "dtype", "shape"]
    assert header(55) == header(49) == ["name", "dtype"]
    short = lines_at(monkeypatch, 40, HEADER[:2], [cells[:2] for cells in rows])
    assert short[1:] == [
        "model.layers.9…n.q_proj.weight  bfloat16",
        "model.layers.1…n.q_proj.weight  bfloat16",
    ]
    assert lines_at(monkeypatch, 26, HEADER, rows) == [
        "name",
        "  dtype     shape  offset",
        "model.layers.9.s…oj.weight",
        "  bfloat16  64x64  123456",
        "model.layers.10.…oj.weight",
        "  bfloat16  64x64  123456",
    ]


def test_a_dropped_column_makes_room_for_narrow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    header = ("name", "a", "wide", "b")
    lines = lines_at(
        monkeypatch, 20, header, [["x", "1", "w" * 30, "2"]], optional=("b", "a", "wide")
    )
    assert lines[:2] == ["name  a  b", "x     1  2"]
    assert " ".join(lines[2:]) == "columns not shown: wide; use a wider terminal or --json"


def test_a_name_wider_than_the_terminal_costs_no_column(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["weight" * 60 + f".{n}", "float32", "", "", ""] for n in (1, 2)]
    rows.append(["short.name.of.a.bias", "float32", "", "", ""])
    lines = lines_at(monkeypatch, 60, HEADER, rows)
    assert lines[0].split() == ["name", "dtype"]
    assert [line.split()[1] for line in lines[1:]] == ["float32"] * 3
    assert [line.split()[0][-2:] for line in lines[1:3]] == [".1", ".2"]


def test_names_that_differ_in_the_middle_are_not_shortened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["x" * 200 + digit + "x" * 200 for digit in "12"]
    lines = lines_at(monkeypatch, 80, HEADER[:2], [[name, "float32"] for name in names])
    assert lines == ["name", "  dtype", names[0], "  float32", names[1], "  float32"]


def test_columns_without_content_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (None, 80, 10):
        lines = lines_at(monkeypatch, room, ("name", "strides", "dtype"), [["a", "", "int8"]])
        assert "strides" not in " ".join(lines)


@given(st.text("ab. \N{CJK UNIFIED IDEOGRAPH-5C64}"), st.integers(1, 60), st.integers(0, 8))
def test_wrapping_keeps_words_whole(text: str, room: int, indent: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cgpt_convert.cli.table.width", lambda **_: room)
        lines = wrapped(text, indent).split("\n")
    assert " ".join(lines).split() == text.split()
    assert all(columns(line) <= room or len(line.split()) <= 1 for line in lines)


def test_a_size_stays_with_its_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgpt_convert.cli.table.width", lambda **_: 12)
    assert wrapped("float32 1.5\xa0MB and") == "float32\n1.5 MB and"


def test_colour_codes_have_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    red = "\x1b[31m7\x1b[0m"
    lines = lines_at(monkeypatch, 80, ("name", "nan"), [["a", red], ["b", "10"]], right=["nan"])
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in lines] == [
        "name  nan",
        "a       7",
        "b      10",
    ]


@given(st.text("ab層", max_size=30), st.integers(8, 20))
def test_a_shortened_text_has_its_beginning_and_its_end(text: str, most: int) -> None:
    short = cut(text, most)
    beginning, _, end = short.partition("…")
    assert columns(short) <= most
    assert text.startswith(beginning)
    assert text.endswith(end)

"""File names from tensor names: valid everywhere, all different, and reversible."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cgpt_convert.core.file_names import file_names, tensor_name

DEVICES = {"con", "prn", "aux", "nul"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(10)}
FORBIDDEN = set('<>:"/\\|?*') | {chr(code) for code in range(32)}  # by Windows


def one(name: str, suffix: str = ".npy") -> str:
    return file_names([name], suffix)[name]


@pytest.mark.parametrize(
    "name",
    ["transformer.h.0.ln_1.weight", "lm_head.weight", "W", "0", "a-b", "a~b", "data_7", "connect"],
)
def test_an_ordinary_name_stays_as_it_is(name: str) -> None:
    assert one(name) == f"{name}.npy"
    assert one(name, "") == name


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("", "%.npy"),
        (".", "%2E.npy"),
        ("..", "%2E%2E.npy"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd.npy"),
        ("/abs", "%2Fabs.npy"),
        ("C:\\x", "C%3A%5Cx.npy"),
        ("dense/kernel:0", "dense%2Fkernel%3A0.npy"),
        ("a\0b", "a%00b.npy"),
        ("-rf", "%2Drf.npy"),
        ("CON", "%43ON.npy"),
        ("nul.weight", "%6Eul.weight.npy"),
        ("Com1.x", "%43om1.x.npy"),
        ("trailing.", "trailing%2E.npy"),
        ("100%", "100%25.npy"),
        ("%41", "%2541.npy"),
        ("é", "%C3%A9.npy"),
        ("\x1b[31m", "%1B%5B31m.npy"),
        ("\ud800", "%ED%A0%80.npy"),
        ("x.npy", "x.npy.npy"),
    ],
)
def test_an_unsafe_name_is_encoded(name: str, file: str) -> None:
    assert one(name) == file
    assert tensor_name(file.removesuffix(".npy")) == name


def test_names_that_differ_in_case_have_their_capitals_encoded() -> None:
    files = file_names(["proj.W", "proj.w", "Other"], ".npy")
    assert files == {"proj.W": "proj.%57.npy", "proj.w": "proj.w.npy", "Other": "Other.npy"}


def test_a_long_name_is_cut_and_told_apart_by_a_digest() -> None:
    names = ["x" * 400 + tail for tail in ("a", "b", "A")]
    files = file_names(names, ".npy")
    assert {len(file) for file in files.values()} == {255}
    assert len({file.lower() for file in files.values()}) == 3
    assert all(tensor_name(file.removesuffix(".npy")) is None for file in files.values())


def test_the_longest_name_that_fits_is_not_cut() -> None:
    assert one("y" * 251) == "y" * 251 + ".npy"
    assert one("y" * 252) != "y" * 252 + ".npy"


@pytest.mark.parametrize("stem", ["a b", "é", "%4", "%zz", "%c3%a9", "%C3", "a/b", "x%~0", "a\n"])
def test_a_stem_that_we_never_write_stands_for_no_name(stem: str) -> None:
    assert tensor_name(stem) is None


NAMES = st.text(
    st.one_of(st.sampled_from("aAbB./\\%~-: \0éÉKk\u017fßçc\u0327"), st.characters()), max_size=12
)


@given(st.lists(st.one_of(NAMES, NAMES.map(lambda name: name * 90)), unique=True, max_size=8))
@example(["%~", "", "%", "%25"])
@example(["K", "k", "\u212a"])  # the Kelvin sign folds to k
@example(["A.B", "a.B", "%41.b", "%61.b"])
def test_files_are_valid_different_and_reversible(names: list[str]) -> None:
    files = file_names(names, ".npy")
    assert list(files) == names
    folded = {unicodedata.normalize("NFKC", file).casefold() for file in files.values()}
    assert len(folded) == len(names)
    for name, file in files.items():
        assert file.isascii()
        assert len(file) <= 255
        assert not FORBIDDEN & set(file)
        assert not re.match(r"[.\-]", file)
        assert file.split(".")[0].lower() not in DEVICES
        stem = file.removesuffix(".npy")
        assert not stem.endswith((".", " "))
        assert "%~" in stem or tensor_name(stem) == name


@given(st.text(max_size=20))
def test_decoding_any_text_gives_a_name_or_none(stem: str) -> None:
    assert tensor_name(stem) is None or isinstance(tensor_name(stem), str)

"""JSON that readers would read differently is refused."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.strict_json import is_text_map, loads


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        "{",
        "{} x",
        '{"a":1,"a":1}',
        '{"x":{"a":1,"b":2,"a":3}}',
        '{"a":-1}',
        '{"a":1.5}',
        '{"a":1e3}',
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":"\\ud800"}',
        '{"a":"\\udc00\\ud800"}',
        '{"a":"\n"}',
        "{'a':1}",
        '{"a":' + "9" * 21 + "}",
        '{"a":' * 100_000,
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        loads(text.encode(), "here")
    assert caught.value.where == "here"
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("number", ["-1", "-0", "1" * 21, "0123"])
@pytest.mark.parametrize("around", ['{"a":%s}', '{"a" : %s\n}', '{"a":[1,\t%s ]}', '{"a":[%s,2]}'])
def test_odd_numbers_are_refused_wherever_they_stand(number: str, around: str) -> None:
    with pytest.raises(Malformed):
        loads((around % number).encode(), "")


@pytest.mark.parametrize("text", ["-1", "-0", ":-5,", "0" * 32, "[" + "1" * 30 + "]"])
def test_what_looks_like_odd_numbers_may_be_text(text: str) -> None:
    assert loads(json.dumps({text: [text, 1]}).encode(), "") == {text: [text, 1]}


def test_read() -> None:
    text = '{"a": [1, 18446744073709551615], "é": "\\ud83e\\udd8a\\u00e9", "": null, "t": true}'
    assert loads(text.encode(), "") == json.loads(text)


def test_more_values_than_memory_allows_are_refused_unread() -> None:
    with pytest.raises(Unsupported):
        loads(b"[" * 10_000_001, "")


@given(st.binary(max_size=60))
def test_noise_is_read_or_refused(noise: bytes) -> None:
    with contextlib.suppress(CgptError):
        assert isinstance(loads(b"{" + noise, ""), dict)


def test_a_text_map_has_strings_alone() -> None:
    assert is_text_map({"a": "b"})
    assert not is_text_map({"a": 1})
    assert not is_text_map(["a"])

"""Strict JSON: RFC 8259 without the constructs that parsers interpret differently."""

from __future__ import annotations

from typing import Any, NoReturn

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.limits import JSON_VALUES
from cgpt_convert.core.text import quoted

_DIGITS = 20  # decimal digits of an unsigned 64-bit integer
_SHOWN = 80  # characters of a key or number, in errors
_AS_ZERO = bytes.maketrans(b"123456789 \n\r\t", b"000000000,,,,")


def loads(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in `data`, with unique keys and non-negative integers as numbers.

    Raises Malformed for anything else, including duplicate keys (RFC 8259, 4: parsers differ),
    other numbers, lone surrogates and nesting too deep to read; Unsupported for more values than
    `limits.JSON_VALUES`.
    """
    check_count(data, where)
    import json

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=_natural if _may_be_odd(data) else None,
            parse_float=_reject_number,
            parse_constant=_reject_number,
        )
        if b"\\ud" in data or b"\\uD" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # finds lone surrogates
    except UnicodeError as error:
        raise Malformed(f"the JSON is not valid UTF-8 ({error})", where=where) from error
    except RecursionError as error:
        raise Malformed("the JSON is nested too deeply", where=where) from error
    except ValueError as error:
        raise Malformed(f"the JSON is not valid: {error}", where=where) from error
    if not isinstance(value, dict):
        raise Malformed("the JSON is not an object", where=where)
    return value


def check_count(data: bytes, where: str, hint: str = "") -> None:
    """Raise Unsupported for JSON of more than `limits.JSON_VALUES` values, before parsing it.

    A bracket takes one byte in the file and 64 in memory.
    """
    if sum(map(data.count, (b"[", b"{", b","))) > JSON_VALUES:
        message = f"the JSON has more values than the limit of {JSON_VALUES:,}"
        raise Unsupported(message, where=where, hint=hint)


def is_text_map(value: object) -> bool:
    """Return whether `value` is a dict whose values are all strings."""
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; raise ValueError for a duplicate key."""
    value = dict(pairs)
    if len(value) < len(pairs):
        left = iter(value)  # in file order, so the first key that is not next is a duplicate
        twice = next(key for key, _ in pairs if key != next(left, None))
        raise ValueError(f"the key {quoted(twice, _SHOWN)} occurs twice")
    return value


def _may_be_odd(data: bytes) -> bool:
    """Return whether `data` may contain integers that `_natural` rejects.

    If it cannot, the default integer parser is used, which halves the time for a vocabulary. Digits
    inside strings can cause false positives, but rarely do: in GPT-2's vocabulary, digit tokens are
    surrounded by quotation marks.
    """
    plain = data.translate(_AS_ZERO)
    long = b"0" * (_DIGITS + 1)
    odd = (b":-0", b",-0", b"[-0", long + b",", long + b"]", long + b"}")
    return any(number in plain for number in odd)


def _natural(digits: str) -> int:
    if digits.startswith("-") or len(digits) > _DIGITS:
        _reject_number(digits)
    return int(digits)


def _reject_number(text: str) -> NoReturn:
    shown = text[:_SHOWN]
    raise ValueError(f"{shown} is not a non-negative integer of at most {_DIGITS} digits")

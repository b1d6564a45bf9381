"""Tokenizer files with fields of any type: an error of ours or a tokenizer, never a traceback."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Tokenizer

from cgpt_convert.core.errors import CgptError
from cgpt_convert.inference.text_codec import Decoder, Encoder
from cgpt_convert.targets.llama_cpp import gguf_metadata
from cgpt_convert.targets.tokenizer.bpe import find
from tests.helpers import llama_model
from tests.helpers.running import run

NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SIZE = 400
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 1.5, "", " ", "x", "BPE", "<0x-1>"),
    *("<0xGG>", "ByteLevel", "\u00b2", [], {}, [[]], [{}], [None], [1], [-1], ["a"], ["a", "b"]),
    *(
        [["a"]],
        [["a", 1]],
        [["a", "b", "c"]],
        {"x": None},
        {"type": "x"},
        {"id": 1},
        {"content": 1},
    ),
    *({"content": "x", "id": -1}, {"type": "Sequence"}, {"type": "Sequence", "pretokenizers": 1}),
    *({"type": "TemplateProcessing", "single": [1]}, {"type": "ByteLevel", "use_regex": []}),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files that transformers writes, by name."""
    folder = tmp_path_factory.mktemp("whole")
    llama_model.write_tokenizer(folder)
    made = GPT2Tokenizer.from_pretrained(folder)
    made.add_tokens(["<mine>"])
    made.save_pretrained(folder)
    files = {name: json.loads((folder / name).read_text()) for name in NAMES[:2]}
    ends = {
        "bos_token": "<|endoftext|>",
        "eos_token": {"content": "<|endoftext|>", "lstrip": False},
    }
    files[NAMES[2]] = {**ends, "additional_special_tokens": ["<mine>"]}
    files[NAMES[1]] |= {
        "added_tokens_decoder": {"5": {"content": "x", "special": True}},
        "chat_template": [{"name": "default", "template": "x"}],
        "extra_special_tokens": {"mine": "<mine>"},
        "add_bos_token": True,
    }
    around = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    files[NAMES[0]]["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [around, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [around, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [5], "tokens": ["<|endoftext|>"]}
        },
    }
    return files


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something is in a value of JSON; of long lists and objects, the first few."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in list(items)[:40]:
            yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_field_of_another_type_is_an_error_of_ours(
    data: st.DataObject, whole: dict[str, Any], tmp_path: Path
) -> None:
    files = dict(whole)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(NAMES))
        path = data.draw(st.sampled_from(list(places(files[name]))))
        files[name] = changed(files[name], path, data.draw(st.sampled_from(ODD)))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with contextlib.suppress(CgptError):
        made = find(None, str(tmp_path), SIZE)
        assert made is not None
        with contextlib.suppress(CgptError):
            gguf_metadata.vocabulary(made, SIZE)
        Decoder(made).decode(range(SIZE))
        Encoder(made).encode("a text <mine><|endoftext|> and more")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "merges"), 5),
        (("model", "merges"), {"a": 1}),
        (("model", "vocab"), []),
        (("added_tokens",), {"a": 1}),
        (("pre_tokenizer",), {"type": "Sequence", "pretokenizers": 5}),
        (("post_processor", "single"), 5),
        (("model", "type"), []),
    ],
)
def test_generate_says_what_is_wrong(
    path: tuple[str, ...], value: object, whole: dict[str, Any], tmp_path: Path
) -> None:
    llama_model.write(tmp_path)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed(whole[NAMES[0]], path, value)))
    done = run("generate", tmp_path, "some text", "--max-new-tokens", "2")
    assert done.code == 3, done.err
    assert "tokenizer" in done.err

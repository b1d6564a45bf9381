"""Other architectures: not mistaken for a known one, and added as one file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cgpt_convert.architectures import known_models, schema, toml_files
from cgpt_convert.architectures.hf_config_check import check_config
from cgpt_convert.architectures.known_models import models
from cgpt_convert.architectures.recognise import recognise
from cgpt_convert.core.errors import Malformed, Unreadable
from tests.helpers.known_models import (
    bare,
    known,
    small,
)


def strangers() -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
    few = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 99}
    with torch.device("meta"):
        for name, keys in (
            ("Bert", few | {"intermediate_size": 64}),
            ("Llama", few | {"intermediate_size": 64}),
            ("GPTJ", few | {"rotary_dim": 4}),
            ("GPTNeo", few | {"attention_types": [[["global", "local"], 1]]}),
            ("Bloom", few),
            ("OpenAIGPT", few),
            ("OPT", few | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
        ):
            config = getattr(transformers, f"{name}Config")(**keys)
            model = getattr(transformers, f"{name}Model")(config)
            yield name, model.state_dict()
            yield name, {f"transformer.{key}": t for key, t in model.state_dict().items()}


def test_other_architectures_are_not_recognised() -> None:
    seen = set()
    for name, state in strangers():
        assert recognise(bare({key: tuple(t.shape) for key, t in state.items()})) is None, name
        seen.add(name)
    assert len(seen) == 7
    assert recognise({}) is None
    assert recognise(bare({"weight": (1,)})) is None


def test_an_architecture_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(__file__).parents[2] / "mappings", tmp_path, dirs_exist_ok=True)
    (tmp_path / "architectures/toy.toml").write_text(
        """
        name = "toy"
        model_types = ["toy"]
        prefixes = ["toy."]
        anchors = [["block.{i}.up"]]
        skipped = []
        config = { keys = { n_layer = ["depth"] }, defaults = {} }
        tensors = [
            { name = "block.{i}.up", shape = ["n_embd", "2*n_embd"], names = { raw = "b{i+1}" } },
            { name = "block.{i}.b", shape = ["n_embd"], names = {} },
        ]
        """
    )
    with elsewhere(tmp_path, monkeypatch):
        found = known(bare({"toy.block.0.up": (3, 6), "toy.block.0.b": (3,), "toy.c": ()}))
        assert found.architecture.name == "toy"
        assert found.sizes == {"n_layer": 1, "n_embd": 3}
        assert found.names("raw") == {"toy.block.0.up": "b1"}
        assert (found.conv1d, found.head) == ("", "absent")
        assert [line.split(":")[0] for line in found.misfits] == ["toy.c"]
        assert known(small()).architecture.name == "gpt2"
        assert check_config(found, {"depth": 2}) == [
            "config.json has depth 2, but the tensors have 1"
        ]


def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A context in which the mappings are those of `folder`."""
    from contextlib import contextmanager

    @contextmanager
    def context() -> Iterator[None]:
        clear()
        monkeypatch.setattr(toml_files, "_FOLDERS", (str(folder),))
        try:
            yield
        finally:
            monkeypatch.undo()
            clear()

    return context()


def clear() -> None:
    schema.architectures.cache_clear()
    known_models.models.cache_clear()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("architectures/gpt2.toml", "name = ", "invalid TOML"),
        ("architectures/gpt2.toml", 'name = "gpt2"', "the key 'tensors' is missing"),
        ("architectures/gpt2.toml", "tensors = 3", "invalid content"),
        ("models/gpt2.toml", 'architecture = "gpt9"', "the key 'gpt9' is missing"),
        ("models/gpt2.toml", b"\xff", "invalid TOML"),
    ],
)
def test_broken_mapping_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str | bytes, said: str
) -> None:
    shutil.copytree(Path(__file__).parents[2] / "mappings", tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with elsewhere(tmp_path, monkeypatch), pytest.raises(Malformed, match=said) as raised:
        models()
    assert raised.value.where.endswith(file)


def test_shards_must_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(__file__).parents[2] / "mappings", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "models/cerebras-gpt.toml"
    path.write_text(path.read_text().replace("[322, 242]", "[322, 241]"))
    with elsewhere(tmp_path, monkeypatch), pytest.raises(Malformed, match="322, 241"):
        models()


def test_lost_mappings_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere(tmp_path, monkeypatch), pytest.raises(Unreadable, match="install cgpt-convert"):
        recognise({})

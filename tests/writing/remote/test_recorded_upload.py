"""Output that goes to memory://, a store that takes bytes in order, and comes back from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from safetensors.numpy import load

from tests.helpers.recorded import FOLDER
from tests.helpers.running import run

MODEL = FOLDER / "cs"


@pytest.fixture
def store() -> Iterator[Any]:
    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/recorded", recursive=True)


def test_a_model_goes_to_a_store_and_comes_back(store: Any) -> None:
    url = "memory://recorded/m.safetensors"
    done = run("convert", MODEL, "-o", url)
    assert done.code == 0, done.err
    expected = load((FOLDER / "cs.safetensors").read_bytes())
    found = load(store.cat("/recorded/m.safetensors"))
    assert expected.keys() - found.keys() <= {"lm_head.weight"}
    assert all(array.tobytes() == expected[name].tobytes() for name, array in found.items())
    assert run("verify", MODEL, url).code == 0
    assert run("inspect", url, "--check").code == 0


@pytest.mark.parametrize("words", [("--to", "npy"), ("--to", "hf", "--max-shard-size", "50kB")])
def test_a_folder_goes_to_a_store(store: Any, words: tuple[str, ...]) -> None:
    done = run("convert", MODEL, "-o", "memory://recorded/out", *words)
    assert done.code == 0, done.err
    assert len(store.ls("/recorded/out")) > 2
    if "hf" in words:
        assert run("verify", MODEL, "memory://recorded/out").code == 0


def test_what_is_there_is_kept(store: Any) -> None:
    store.pipe("/recorded/m.npz", b"precious")
    done = run("convert", MODEL, "-o", "memory://recorded/m.npz")
    assert (done.code, store.cat("/recorded/m.npz")) == (4, b"precious")

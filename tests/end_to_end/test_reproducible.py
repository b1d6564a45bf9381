"""The same input gives the same bytes, wherever and whenever it is converted."""

import hashlib
from pathlib import Path

import pytest
import torch

from cgpt_convert.formats import registry
from tests.helpers import vendor
from tests.helpers.running import contents, spawn

COMMANDS = {
    **{
        name: ("convert", f"out{registry.by_name(name).suffix}", "--to", name)
        for name in registry.names()
        if name not in ("gguf", "npz")
    },
    "sharded": ("convert", "out.safetensors", "--max-shard-size", "100kB"),
    "npz": ("convert", "out.npz", "--dtype", "float16", "--exclude", "Größe"),
    "extract": ("extract", "out"),
    "by name": ("extract", "out", "--by", "name"),
}

SURROUNDINGS = (
    {"TZ": "UTC", "LC_ALL": "C", "PYTHONHASHSEED": "1"},
    {"TZ": "Pacific/Kiritimati", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2"},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {
        **vendor.state_dict(vendor.TINY),
        "größe": torch.ones(2, dtype=torch.bfloat16),
        "Größe": torch.ones(2, dtype=torch.float64),
    }
    return vendor.save(state, tmp_path_factory.mktemp("tiny") / "model.bin")


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_same_input_gives_the_same_bytes(model: Path, tmp_path: Path, kind: str) -> None:
    command, output, *options = COMMANDS[kind]
    digests = set()
    for number, environment in enumerate(SURROUNDINGS):
        folder = tmp_path / str(number)
        folder.mkdir()
        # the input has another path and time, too
        copy = folder / f"copy{number}.bin"
        copy.write_bytes(model.read_bytes())
        result = spawn(command, copy, "-o", folder / output, *options, **environment)
        assert result.code == 0, result.err
        copy.unlink()
        found = contents(folder)
        assert found
        parts = [f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in found.items()]
        digests.add("\n".join(sorted(parts)))
    assert len(digests) == 1


def test_json_is_reproducible_but_for_the_paths(model: Path) -> None:
    shown = {spawn("inspect", model, "--json", **each).raw for each in SURROUNDINGS}
    assert len(shown) == 1

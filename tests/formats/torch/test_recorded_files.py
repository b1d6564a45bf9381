"""Files that torch wrote, read without torch: every element is that of safetensors' own copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from cgpt_convert import open_checkpoint
from cgpt_convert.core.errors import Malformed
from tests.helpers.recorded import FOLDER
from tests.helpers.running import run

MODEL = FOLDER / "cs" / "pytorch_model.bin"
FILES = {
    "zip": (MODEL, "cs.safetensors"),
    "a folder": (FOLDER / "cs", "cs.safetensors"),
    "legacy": (FOLDER / "legacy.pt", "cs.safetensors"),
    "shards": (FOLDER / "hf", "hf.safetensors"),
    "an index": (FOLDER / "hf" / "pytorch_model.bin.index.json", "hf.safetensors"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_is_that_of_safetensors(name: str) -> None:
    path, copy = FILES[name]
    expected = load_file(FOLDER / copy)
    checkpoint = open_checkpoint(path)
    assert set(checkpoint) == set(expected)
    for key, tensor in checkpoint.items():
        array = tensor.numpy()
        assert (array.dtype, array.shape) == (expected[key].dtype, expected[key].shape)
        assert array.tobytes() == expected[key].tobytes()


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_ties_and_strides_are_those_that_torch_saved(name: str) -> None:
    checkpoint = open_checkpoint(FILES[name][0])
    assert checkpoint.ties == {"lm_head.weight": "transformer.wte.weight"}
    weight = checkpoint["transformer.h.0.attn.c_attn.weight"]
    assert (weight.shape, weight.strides) == ((32, 96), (1, 32))


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.9])
def test_of_a_file_that_is_cut_off_the_whole_tensors_are_salvaged(
    kept: float, tmp_path: Path
) -> None:
    data = MODEL.read_bytes()
    cut = tmp_path / "cut.bin"
    cut.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(Malformed, match="truncated"):
        open_checkpoint(cut)
    done = run("convert", cut, "-o", tmp_path / "out.safetensors", "--salvage", "--tied", "copy")
    assert done.code == 1, done.err
    expected, found = load_file(FOLDER / "cs.safetensors"), load_file(tmp_path / "out.safetensors")
    whole = {
        name
        for name, tensor in open_checkpoint(MODEL).items()
        if tensor.storage.offset + tensor.storage.nbytes <= len(data) * kept
    }
    assert set(found) == whole
    assert all(array.tobytes() == expected[name].tobytes() for name, array in found.items())

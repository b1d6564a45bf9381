"""What is recorded for the fast tests is what torch, transformers and ggml make today."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from tests.helpers.recorded import FOLDER, numbers, record
from tests.helpers.running import contents


def test_the_files_are_what_the_script_makes(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    record(tmp_path / "new")
    ours, made = contents(FOLDER), contents(tmp_path / "new")
    assert ours.keys() == made.keys()
    for name, data in made.items():
        if name == "legacy.pt":  # which names its storages by their addresses
            one, other = (torch.load(folder / name) for folder in (FOLDER, tmp_path / "new"))
            assert list(one) == list(other)
            assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
        elif name == "model.npz":
            with np.load(FOLDER / name) as one, np.load(tmp_path / "new" / name) as other:
                assert one.files == other.files
                for key in one.files:
                    assert np.allclose(one[key], other[key], rtol=1e-6, atol=1e-6), key
        else:
            assert ours[name] == data, name


def test_the_tensors_are_those_that_torch_reads() -> None:
    state = torch.load(FOLDER / "cs" / "pytorch_model.bin")
    copies = load_file(FOLDER / "cs.safetensors")
    assert state.keys() == copies.keys()
    assert all(torch.equal(copies[name], tensor) for name, tensor in state.items())


def test_the_numbers_have_many_magnitudes() -> None:
    magnitudes = np.abs(numbers()).max(axis=1)
    assert magnitudes.max() / magnitudes.min() > 100

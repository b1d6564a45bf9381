"""One tensor passes through few modules on its way through a conversion."""

from pathlib import Path

import pytest

from benchmarks import walk

ROOT = Path(__file__).parents[2]
# modules that a whole conversion enters, and those that each tensor enters
MOST = {"safetensors": (58, 30), "gguf": (78, 35)}


@pytest.mark.slow  # torch
@pytest.mark.parametrize("target", walk.TARGETS)
def test_a_tensor_enters_few_modules(target: str, tmp_path: Path) -> None:
    measured = walk.walks(target, tmp_path, ROOT)
    whole, tensor = MOST[target]
    assert len(measured.whole.modules) <= whole
    assert len(measured.tensor.modules) <= tensor
    assert ("tensors.tensor", "Storage.readinto") in measured.tensor.functions  # it measures
    assert set(measured.tensor.modules) <= set(measured.whole.modules)

"""Records reserved under torch.serialization.skip_data() have no values."""

from pathlib import Path

import pytest
import torch

from cgpt_convert import open_checkpoint
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.targets.selection import TensorSelection, select


def test_tensors_without_values_are_named_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.bin"
    with torch.serialization.skip_data():
        torch.save({"w": torch.ones(3), "b": torch.ones(2)}, path)
    checkpoint = open_checkpoint(path)
    assert [f.rule.id for f in checkpoint.findings] == ["CGPT007"]
    assert checkpoint.unsaved == {"w", "b"}
    with pytest.raises(Unsupported, match="tensor 'w' has no values"):
        select(checkpoint, TensorSelection())


def test_a_file_without_any_checksums_is_not_taken_for_one_without_values(tmp_path: Path) -> None:
    path = tmp_path / "plain.bin"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    checkpoint = open_checkpoint(path)
    assert [f.rule.id for f in checkpoint.findings] == ["CGPT002"]
    assert [t.name for t in select(checkpoint, TensorSelection()).tensors] == ["w"]

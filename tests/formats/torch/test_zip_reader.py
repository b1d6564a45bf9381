"""Archives by other options of torch's, other programs and machines of the other byte order."""

from __future__ import annotations

import collections
import importlib
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed
from cgpt_convert.formats.torch.zip_reader import read
from cgpt_convert.sources.local import LocalFile
from cgpt_convert.tensors import dtypes
from tests.helpers import zips
from tests.helpers.torch_agreement import (
    BASE,
    COMPLEX,
    TYPES,
    agree,
    bits,
    filled,
    ignore_deprecation,
    opened,
    raw,
)


class Script(nn.Module):
    """Enough for a TorchScript archive with constants."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.register_buffer("scale", torch.tensor([2.0]))
        self.sizes = [1, 2, 3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        return y * self.scale + torch.tensor([1.0, 2.0])


@ignore_deprecation
def test_torchscript_has_the_names_of_its_state_dict() -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(Script(), torch.ones(3)), file)
    checkpoint = opened(file.getvalue())
    state = torch.jit.load(io.BytesIO(file.getvalue())).state_dict()
    assert checkpoint.kind == "TorchScript archive"
    ours = {name: bits(tensor) for name, tensor in checkpoint.items() if name in state}
    assert ours == {name: raw(tensor) for name, tensor in state.items()}
    others = [name for name in checkpoint if name not in state]
    assert others
    assert all(name.startswith("constants") for name in others)
    assert [finding.rule for finding in checkpoint.findings] == [findings.COMPRESSED]  # its code


def swapped(data: bytes, width: int) -> bytes:
    return b"".join(data[at : at + width][::-1] for at in range(0, len(data), width))


BIG_TYPES = [dtype for dtype in TYPES if dtypes.BY_NAME[str(dtype)[6:]].storage]


@pytest.mark.parametrize("dtype", BIG_TYPES, ids=str)
def test_31_big_endian_archives(dtype: torch.dtype) -> None:
    value = filled(dtype, 4, 5).t()
    entries = zips.entries_of(zips.saved({"w": value}))
    width = dtypes.BY_NAME[str(dtype)[6:]].swap_width
    content = swapped(entries["archive/data/0"].data, width)
    data = zips.changed(zips.saved({"w": value}), byteorder=b"big", data__0=content)
    loaded = torch.load(io.BytesIO(data))
    assert raw(loaded["w"]) == raw(value)
    agree(opened(data), loaded)


def test_31_big_endian_archives_with_untyped_storages_are_read_as_they_were_meant() -> None:
    """torch does not swap these, for it does not know their type when it reads them."""
    value = torch.tensor([1, 2, 770], dtype=torch.uint16)
    content = swapped(raw(value), 2)
    data = zips.changed(zips.saved({"w": value}), byteorder=b"big", data__0=content)
    assert torch.load(io.BytesIO(data))["w"].tolist() == [256, 512, 515]
    assert opened(data)["w"].numpy().tolist() == [1, 2, 770]


def test_31_absent_byte_order_is_little() -> None:
    data = zips.changed(zips.saved({"w": BASE}), byteorder=None)
    agree(opened(data), torch.load(io.BytesIO(data)))


@pytest.mark.parametrize("order", [b"junk", b"", b"BIG", b"little\n", b"b" * 100_000])
def test_31_any_other_byte_order_is_refused(order: bytes) -> None:
    with pytest.raises(CgptError, match=r"byte order|the limit is"):
        opened(zips.changed(zips.saved({"w": BASE}), byteorder=order))


def test_values_that_were_not_saved_are_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "skipped.pt"
    with torch.serialization.skip_data():
        torch.save({"w": BASE}, path)
    checkpoint = read(LocalFile(path))
    assert checkpoint["w"].shape == (5, 6, 7)
    assert findings.VALUES_NOT_SAVED in [finding.rule for finding in checkpoint.findings]


@pytest.mark.parametrize("alignment", [1, 8, 4096])
def test_alignment_of_storages_may_be_any(alignment: int) -> None:
    config: Any = importlib.import_module("torch.utils.serialization.config")
    with config.patch({"save.storage_alignment": alignment}):
        data = zips.saved({"a": torch.ones(3, dtype=torch.uint8), "b": BASE})
    checkpoint = opened(data)
    agree(checkpoint, torch.load(io.BytesIO(data)))
    assert checkpoint["b"].storage.offset % alignment == 0
    assert not checkpoint.findings


@pytest.mark.parametrize(
    ("file", "root"),
    [
        ("pytorch_model.bin", "pytorch_model"),
        ("a.b.c.bin", "a.b.c"),
        ("ckpt", "ckpt"),
        ("with space.pt", "with space"),
        ("ünï.pt", "archive"),
    ],
)
def test_root_follows_the_file_name_and_does_not_matter(
    tmp_path: Path, file: str, root: str
) -> None:
    torch.save({"w": BASE}, tmp_path / file)
    checkpoint = read(LocalFile(tmp_path / file))
    assert checkpoint.root == root
    agree(checkpoint, {"w": BASE})


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_pickle_protocol(protocol: int) -> None:
    value = collections.OrderedDict(a=nn.Parameter(BASE), b=[BASE[0], {"c": COMPLEX.conj()}])
    data = zips.saved(value, pickle_protocol=protocol)
    agree(opened(data), torch.load(io.BytesIO(data), weights_only=False))


def test_pickle_protocol_0_cannot_hold_references_to_storages() -> None:
    data = zips.saved({"w": BASE}, pickle_protocol=0)
    with pytest.raises(AssertionError):
        torch.load(io.BytesIO(data), weights_only=False)
    with pytest.raises(Malformed, match="the storage reference"):
        opened(data)


def test_zip_of_a_torch_file_by_another_program_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rezipped.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, entry in zips.entries_of(zips.saved({"w": BASE})).items():
            file.writestr(name, entry.data)
    checkpoint = read(LocalFile(path))
    assert bits(checkpoint["w"]) == raw(BASE)
    assert [finding.rule for finding in checkpoint.findings] == [findings.COMPRESSED]

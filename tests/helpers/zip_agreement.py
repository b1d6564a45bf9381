"""A zip as we read it, as Python reads it and as torch does."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from cgpt_convert.archives.zip_archive import Archive, open_archive
from cgpt_convert.core import findings
from cgpt_convert.sources.local import MemoryBytes
from tests.helpers.zips import Entry

if TYPE_CHECKING:
    import torch

STATE: dict[str, np.ndarray] = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "n": np.arange(40),
}


def opened(data: bytes) -> Archive:
    return open_archive(MemoryBytes("x.bin", data))


def contents(archive: Archive) -> dict[str, bytes]:
    return {name: archive.read(name, 1 << 20) for name in archive.members}


def rules(archive: Archive) -> list[findings.FindingRule]:
    return [finding.rule for finding in archive.findings]


def python_reads(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def torch_reads(data: bytes) -> dict[str, torch.Tensor]:
    import torch

    state: dict[str, torch.Tensor] = torch.load(io.BytesIO(data))
    return state


def two(**second: object) -> list[Entry]:
    """Two plain records; the second with these fields."""
    return [Entry("a/data.pkl", b"first"), Entry("a/data/0", b"second").but(**second)]


def zipped(method: int, *, force_zip64: bool = False) -> bytes:
    """An archive that Python wrote."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in (("a/one", b"1" * 1000), ("a/two", b""), ("a/three", b"xyz")):
            with archive.open(name, "w", force_zip64=force_zip64) as member:
                member.write(data)
    return file.getvalue()

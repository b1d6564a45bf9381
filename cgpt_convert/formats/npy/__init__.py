"""NumPy's .npy files, and folders of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.registry import Format, FormatFile
from cgpt_convert.tensors.dtypes import DType

if TYPE_CHECKING:
    from cgpt_convert.plan import FilePlan, Request


def _read_file(file: FormatFile) -> Checkpoint:
    from cgpt_convert.formats.npy import folder

    return folder.from_source(file.source, file.path)


def _read_path(path: str) -> Checkpoint:
    from cgpt_convert.formats.npy import folder

    return folder.read(path)


def _plan(request: Request) -> list[FilePlan]:
    from cgpt_convert.formats.npy import folder

    return folder.plan(request)


def _dtypes() -> tuple[DType, ...]:
    from cgpt_convert.formats.npy import header

    return header.DTYPES


FORMAT = Format(
    "npy", folder=True, read_file=_read_file, read_path=_read_path, plan=_plan, dtypes=_dtypes
)

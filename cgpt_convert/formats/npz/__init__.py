"""NumPy's .npz: a zip of .npy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.registry import Format, FormatFile
from cgpt_convert.tensors.dtypes import DType

if TYPE_CHECKING:
    from cgpt_convert.plan import FilePlan, Request


def _read_file(file: FormatFile) -> Checkpoint:
    from cgpt_convert.formats.npz import archive

    return archive.from_source(file.source, file.path)


def _plan(request: Request) -> list[FilePlan]:
    from cgpt_convert.formats.npz import archive

    return archive.plan(request)


def _dtypes() -> tuple[DType, ...]:
    from cgpt_convert.formats.npz import archive

    return archive.DTYPES


FORMAT = Format("npz", (".npz",), read_file=_read_file, plan=_plan, dtypes=_dtypes)

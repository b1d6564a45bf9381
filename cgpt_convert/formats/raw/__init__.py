"""Raw storages with a mapping, as written by `extract`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.registry import Format
from cgpt_convert.tensors.dtypes import DType

if TYPE_CHECKING:
    from cgpt_convert.plan import FilePlan, Request


def _read_path(path: str) -> Checkpoint:
    from cgpt_convert.formats.raw import writer

    return writer.read(path)


def _plan(request: Request) -> list[FilePlan]:
    from cgpt_convert.formats.raw import writer

    return writer.plan(request)


def _dtypes() -> tuple[DType, ...]:
    from cgpt_convert.formats.raw import writer

    return writer.DTYPES


FORMAT = Format("parameters", folder=True, read_path=_read_path, plan=_plan, dtypes=_dtypes)

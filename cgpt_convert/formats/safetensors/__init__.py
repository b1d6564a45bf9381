"""The safetensors format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.registry import Format, FormatFile
from cgpt_convert.tensors.dtypes import DType

if TYPE_CHECKING:
    from cgpt_convert.plan import FilePlan, Request


def _read_file(file: FormatFile) -> Checkpoint:
    from cgpt_convert.formats.read_checks import read_described
    from cgpt_convert.formats.safetensors import reader

    return read_described(reader, file.source, file.path, salvage=file.salvage)


def _plan(request: Request) -> list[FilePlan]:
    from cgpt_convert.formats.safetensors import writer

    return writer.plan(request)


def _dtypes() -> tuple[DType, ...]:
    from cgpt_convert.formats.safetensors import writer

    return writer.DTYPES


FORMAT = Format("safetensors", (".safetensors",), read_file=_read_file, plan=_plan, dtypes=_dtypes)

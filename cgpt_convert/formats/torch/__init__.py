"""PyTorch files: zip archive, legacy stream, tar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.detect import Kind
from cgpt_convert.formats.registry import Format, FormatFile
from cgpt_convert.tensors.dtypes import DType

if TYPE_CHECKING:
    from cgpt_convert.plan import FilePlan, Request


def _read_file(file: FormatFile) -> Checkpoint:
    if file.kind is Kind.LEGACY:
        from cgpt_convert.formats.torch import legacy_reader

        return legacy_reader.read(file.source, salvage=file.salvage)
    if file.kind is Kind.TORCH_TAR:
        from cgpt_convert.formats.torch import tar_reader

        return tar_reader.read(file.source)
    if file.kind is Kind.CUT_ZIP and file.salvage:
        from cgpt_convert.formats.torch import truncated_zip

        return truncated_zip.salvage(file.source).checkpoint
    from cgpt_convert.formats.torch import zip_reader

    return zip_reader.read(file.source)


def _read_path(path: str) -> Checkpoint:
    from cgpt_convert.formats.torch import writer

    return writer.read(path)


def _plan(request: Request) -> list[FilePlan]:
    from cgpt_convert.formats.torch import writer

    return writer.plan(request)


def _dtypes() -> tuple[DType, ...]:
    from cgpt_convert.formats.torch import writer

    return writer.DTYPES


FORMAT = Format(
    "torch",
    (".bin", ".pt", ".pth"),
    read_file=_read_file,
    read_path=_read_path,
    plan=_plan,
    dtypes=_dtypes,
)

"""Folders that are one checkpoint of torch; their readers are imported when they are needed."""

from __future__ import annotations

from collections.abc import Collection

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.torch import torch_files


def read_folder(path: str, inside: Collection[str], salvage: bool) -> Checkpoint:  # noqa: FBT001
    """Return the contents of an unpacked archive, of LLaMA's parts, or of files of ranks."""
    if torch_files.is_unpacked(inside):
        from cgpt_convert.formats.torch import unpacked_archive

        return unpacked_archive.read_unpacked(path)
    if torch_files.parallel_files(inside):
        from cgpt_convert.formats.torch import tensor_parallel

        return tensor_parallel.read_parallel(path, inside, salvage=salvage)
    from cgpt_convert.formats.torch import rank_files

    return rank_files.read_ranks(path, inside, salvage=salvage)

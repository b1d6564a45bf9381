"""The names of the files in a DCP folder, and the detection of its metadata."""

from __future__ import annotations

import re
from collections.abc import Collection

from cgpt_convert.formats.file_kinds import FormatKind, Kind, Start

KIND = FormatKind("PyTorch distributed checkpoint", Kind.PICKLE)
INDEX = ".metadata"
DATA = ".distcp"
MODULE = "torch.distributed.checkpoint.metadata"
_OF_RANK = re.compile(r"__([0-9]+)\.metadata")  # of ranks that were saved without coordination
# saved by HuggingFaceStorageWriter of torch: the rank, then the file of the whole model
_OF_HF = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_NAMED_WITHIN = 96  # bytes from the start that include protocol, frame and module


def detect(start: Start) -> bool:
    """Return whether the file is a pickle whose first name is from the module of DCP metadata."""
    return start.head[:1] == b"\x80" and MODULE.encode() in start.head[:_NAMED_WITHIN]


def is_dcp(inside: Collection[str]) -> bool:
    """Return whether a folder with files of these names is a DCP.

    For a folder that cannot be listed, `inside` are the requested names that exist.
    """
    data = any(name.endswith(DATA) for name in inside)
    return data or {*inside} == {INDEX} or bool(rank_metadata(inside) or hf_shards(inside))


def hf_shards(inside: Collection[str]) -> list[str]:
    """Return the safetensors files of ranks, sorted."""
    return sorted(filter(_OF_HF.fullmatch, inside))


def rank_metadata(inside: Collection[str]) -> list[str]:
    """Return the metadata files of ranks, in the order of the ranks."""
    ranks = {int(match[1]): match[0] for match in map(_OF_RANK.fullmatch, inside) if match}
    return [ranks[rank] for rank in sorted(ranks)]

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
_ROOT = re.compile(  # protocol, frame, and the module of the first global
    rb"\x80[\x02-\x05](?:\x95.{8})?(?:c|\x8c.|X.{4})" + re.escape(MODULE.encode()), re.DOTALL
)


def detect(start: Start) -> bool:
    """Return whether the file is a pickle that begins as DCP metadata, or is named so.

    Programs that load a DCP look for a file of the name. Such an object inside other pickles and
    archives is plain data.
    """
    name = re.split(r"[/\\]", start.source.name)[-1]
    if not start.record and (name == INDEX or _OF_RANK.fullmatch(name)):
        return start.head[:1] == b"\x80"
    return not start.record and _ROOT.match(start.head) is not None


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

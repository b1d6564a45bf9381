"""The names of the files in a folder of a ZeRO checkpoint."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

LATEST = "latest"  # the file with the name of the last checkpoint's folder
_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_([0-9]{1,6})_mp_rank_([0-9]+)_optim_states\.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_([0-9]{1,6})_)?mp_rank_([0-9]+)_model_states\.pt")


class ZeroFiles(NamedTuple):
    """The files of a checkpoint in the order of the ranks."""

    optimizer: list[str]
    model: list[str]  # one, or with ZeRO-3 one for each rank
    tensor_parallel: bool  # are there several ranks of tensor parallelism?


def zero_files(inside: Collection[str]) -> ZeroFiles:
    """Return the files of a checkpoint among the names in a folder."""
    optimizer = [match for match in map(_OPTIMIZER.fullmatch, inside) if match]
    model = [match for match in map(_MODEL.fullmatch, inside) if match]
    parallel = {int(match[2]) for match in (*optimizer, *model)}
    return ZeroFiles(
        [match[0] for match in sorted(optimizer, key=lambda match: int(match[1]))],
        [match[0] for match in sorted(model, key=lambda match: int(match[1] or 0))],
        len(parallel) > 1,
    )


def is_zero(inside: Collection[str]) -> bool:
    """Return whether a folder with these names is a ZeRO checkpoint."""
    return any(map(_OPTIMIZER.fullmatch, inside))


def is_run(inside: Collection[str]) -> bool:
    """Return whether a folder with these names and no weight files names a ZeRO checkpoint in it.

    Trainers save their weights beside the checkpoint, and then these are meant.
    """
    return LATEST in inside and "zero_to_fp32.py" in inside

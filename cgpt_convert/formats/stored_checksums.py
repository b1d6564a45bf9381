"""Removal of tensors whose storages do not match their recorded CRC-32."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.text import printable
from cgpt_convert.core.threads import Progress, no_progress
from cgpt_convert.tensors.checksums import check_storages
from cgpt_convert.tensors.tensor import Tensor


def intact(
    checkpoint: Checkpoint, names: Iterable[str], progress: Progress = no_progress
) -> Checkpoint:
    """Return the checkpoint, with those of the tensors `names` that are damaged among its `lost`.

    A tensor is damaged if one of its storages does not match the CRC-32 that is recorded for it.
    """
    parts = {name: _parts(checkpoint, name) for name in names}
    storages = {id(part.storage): part.storage for each in parts.values() for part in each}
    recorded = [storage for storage in storages.values() if storage.crc32 is not None]
    if not recorded:
        return checkpoint
    with progress("checksums", sum(storage.nbytes for storage in recorded)) as advance:
        damaged = {id(storage) for storage in check_storages(recorded, advance)}
    left = copy.copy(checkpoint)
    left.tensors, left.exotic = dict(checkpoint.tensors), dict(checkpoint.exotic)
    left.lost = dict(checkpoint.lost)
    for name, each in parts.items():
        bad = {part.storage.key: None for part in each if id(part.storage) in damaged}
        if bad:
            why = f"storage {', '.join(map(printable, bad))} does not match its checksum"
            left.lose(name, why)
    return left


def _parts(checkpoint: Checkpoint, name: str) -> tuple[Tensor, ...]:
    """Return the dense tensors that the tensor `name` consists of; none if it is lost."""
    if name in checkpoint.exotic:
        return checkpoint.exotic[name].parts
    return (checkpoint[name],) if name in checkpoint else ()

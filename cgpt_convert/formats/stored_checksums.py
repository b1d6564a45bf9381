"""Removal of tensors whose storages do not match their recorded CRC-32."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Malformed
from cgpt_convert.core.text import quoted_list
from cgpt_convert.core.threads import Progress, no_progress
from cgpt_convert.tensors.checksums import check_storages, stored
from cgpt_convert.tensors.tensor import Storage, Tensor


def intact(
    checkpoint: Checkpoint, names: Iterable[str], progress: Progress = no_progress
) -> Checkpoint:
    """Return the checkpoint, with those of the tensors `names` that are damaged among its `lost`.

    A tensor is damaged if one of its storages does not match the CRC-32 that is recorded for it,
    or if one of its chunks cannot be read.
    """
    parts, unread = _stored(checkpoint, names)
    storages = {id(storage): storage for each in parts.values() for storage in each}
    recorded = [storage for storage in storages.values() if storage.crc32 is not None]
    if not (recorded or unread):
        return checkpoint
    with progress("verifying checksums", sum(storage.nbytes for storage in recorded)) as advance:
        damaged = {id(storage) for storage in check_storages(recorded, advance)}
    left = copy.copy(checkpoint)
    left.tensors, left.exotic = dict(checkpoint.tensors), dict(checkpoint.exotic)
    left.lost = dict(checkpoint.lost)
    for name, each in parts.items():
        bad = {storage.key: None for storage in each if id(storage) in damaged}
        if bad:
            why = f"storage {quoted_list(bad)} does not match its checksum"
            left.lose(name, why)
    for name, why in unread.items():
        left.lose(name, why)
    return left


def _stored(
    checkpoint: Checkpoint, names: Iterable[str]
) -> tuple[dict[str, list[Storage]], dict[str, str]]:
    """Return the storages of each tensor, and why those of others cannot be read."""
    parts: dict[str, list[Storage]] = {}
    unread: dict[str, str] = {}

    def add(name: str) -> None:
        try:
            parts[name] = stored(part.storage for part in _parts(checkpoint, name))
        except Malformed as error:
            unread[name] = error.message

    for name in names:
        add(name)
    return parts, unread


def _parts(checkpoint: Checkpoint, name: str) -> tuple[Tensor, ...]:
    """Return the dense tensors that the tensor `name` consists of; none if it is lost."""
    if name in checkpoint.exotic:
        return checkpoint.exotic[name].parts
    return (checkpoint[name],) if name in checkpoint else ()

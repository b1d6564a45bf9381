"""Removal of tensors whose storages do not match their recorded CRC-32."""

from __future__ import annotations

from collections.abc import Iterable

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.text import printable
from cgpt_convert.core.threads import Advance, untold
from cgpt_convert.tensors.checksums import check_storages
from cgpt_convert.tensors.tensor import Tensor


def lose_damaged(checkpoint: Checkpoint, names: Iterable[str], advance: Advance = untold) -> None:
    """Remove those of the tensors `names` whose storages do not match their CRC-32."""
    parts = {name: parts_of(checkpoint, name) for name in names}
    storages = {id(part.storage): part.storage for each in parts.values() for part in each}
    damaged = {id(storage) for storage in check_storages(storages.values(), advance)}
    for name, each in parts.items():
        bad = {part.storage.key: None for part in each if id(part.storage) in damaged}
        if bad:
            why = f"storage {', '.join(map(printable, bad))} does not match its checksum"
            checkpoint.lose(name, why)


def parts_of(checkpoint: Checkpoint, name: str) -> tuple[Tensor, ...]:
    """Return the dense tensors that the tensor `name` consists of; none if it is lost."""
    if name in checkpoint.exotic:
        return checkpoint.exotic[name].parts
    return (checkpoint[name],) if name in checkpoint else ()

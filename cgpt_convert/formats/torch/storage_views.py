"""Storages that are views of other storages, as saved by torch up to 0.3."""

from __future__ import annotations

from typing import NamedTuple

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Malformed
from cgpt_convert.core.text import quoted
from cgpt_convert.tensors.tensor import Storage, Tensor, replace


class _StorageView(NamedTuple):
    storage: Storage
    root: Storage
    offset: int  # bytes from the root's start


class StorageViews:
    """The storage views of one file, by key."""

    def __init__(self) -> None:
        self._by_key: dict[str, _StorageView] = {}
        self._by_id: dict[int, _StorageView] = {}

    def get(self, key: str, root: Storage, offset: int, nbytes: int) -> Storage:
        """Return the storage of `nbytes` bytes from `offset` of `root`; one object per key.

        Raises Malformed if it exceeds `root`, or if the key was used for another view.
        """
        known = self._by_key.get(key)
        if known is None:
            if offset < 0 or nbytes < 0 or offset + nbytes > root.nbytes:
                raise Malformed(
                    f"storage {quoted(key)} is a view of bytes {offset:,} to {offset + nbytes:,} "
                    f"of storage {quoted(root.key)}, which has {root.nbytes:,} bytes"
                )
            known = _StorageView(
                replace(root, offset=root.offset + offset, nbytes=nbytes, key=key), root, offset
            )
            self._by_key[key] = self._by_id[id(known.storage)] = known
        elif (known.root, known.offset, known.storage.nbytes) != (root, offset, nbytes):
            raise Malformed(f"storage {quoted(key)} is declared as two different views")
        return known.storage

    def root(self, storage: Storage) -> Storage:
        """Return the storage that `storage` is a view of, or itself."""
        window = self._by_id.get(id(storage))
        return window.root if window else storage

    def onto_roots(self, checkpoint: Checkpoint) -> None:
        """Replace every tensor by a view of the root, so that shared memory is recognised."""
        for name, tensor in checkpoint.tensors.items():
            checkpoint.tensors[name] = self._onto_root(tensor)
        for name, exotic in checkpoint.exotic.items():
            parts = tuple(self._onto_root(part) for part in exotic.parts)
            checkpoint.exotic[name] = exotic._replace(parts=parts)

    def _onto_root(self, tensor: Tensor) -> Tensor:
        window = self._by_id.get(id(tensor.storage))
        if window is None:
            return tensor
        start = tensor.start + window.offset // tensor.stored.nbytes
        return replace(tensor, storage=window.root, start=start)

"""The cache of keys and values of computed tokens, allocated once."""

from __future__ import annotations

from collections.abc import Sequence

from cgpt_convert.architectures.hooks import ModelSizes
from cgpt_convert.inference.backend import Array, Backend
from cgpt_convert.tensors.dtypes import FLOAT32


class KVCache:
    """Keys and values of `batch` sequences of up to `capacity` tokens, in every layer.

    It contains `length` tokens; setting a lower value removes the last ones. Memory is 8 bytes
    times n_layer * n_embd * batch * capacity; the system only allocates the pages in use.
    """

    def __init__(self, xp: Backend, hyper: ModelSizes, batch: int, capacity: int) -> None:
        shape = (hyper.n_layer, batch, hyper.n_head, capacity, hyper.d_head)
        self._keys = xp.empty(shape)
        self._values = xp.empty(shape)
        self.capacity = capacity
        self.length = 0

    @staticmethod
    def nbytes(hyper: ModelSizes, batch: int, capacity: int) -> int:
        """Return the size of a full cache, in bytes."""
        return 2 * FLOAT32.nbytes * hyper.n_layer * hyper.n_embd * batch * capacity

    def extended(self, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """Add keys and values (b, h, t, d) of new tokens; return all (b, h, s, d) of the layer."""
        end = self.length + keys.shape[2]
        self._keys[layer, :, :, self.length : end] = keys
        self._values[layer, :, :, self.length : end] = values
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def select(self, source: KVCache, sequences: Sequence[int]) -> None:
        """Copy these sequences of `source`, in this order; `source` may be this cache."""
        end = self.length = source.length
        picked = list(sequences)
        for ours, theirs in ((self._keys, source._keys), (self._values, source._values)):
            for layer in range(len(ours)):  # one layer at a time, since `theirs[picked]` is a copy
                ours[layer][:, :, :end] = theirs[layer][picked, :, :end]

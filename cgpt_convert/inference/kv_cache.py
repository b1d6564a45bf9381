"""The keys and values of tokens that were computed already, allocated once."""

from __future__ import annotations

from collections.abc import Sequence

from cgpt_convert.architectures.hooks import Computed
from cgpt_convert.inference.backend import Array, Backend
from cgpt_convert.tensors.dtypes import FLOAT32


class Cache:
    """Keys and values of `batch` sequences of up to `capacity` tokens, in every layer.

    `length` tokens are in it; setting it to less forgets the last ones. Memory is 8 bytes times
    n_layer * n_embd * batch * capacity, of which the system gives what is used.
    """

    def __init__(self, xp: Backend, hyper: Computed, batch: int, capacity: int) -> None:
        shape = (hyper.n_layer, batch, hyper.n_head, capacity, hyper.d_head)
        self._keys = xp.empty(shape)
        self._values = xp.empty(shape)
        self.capacity = capacity
        self.length = 0

    @staticmethod
    def nbytes(hyper: Computed, batch: int, capacity: int) -> int:
        """Return the bytes that a cache takes when it is full."""
        return 2 * FLOAT32.nbytes * hyper.n_layer * hyper.n_embd * batch * capacity

    def extended(self, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """All keys and values (b, h, s, d) of a layer, those of new tokens (b, h, t, d) added."""
        end = self.length + keys.shape[2]
        self._keys[layer, :, :, self.length : end] = keys
        self._values[layer, :, :, self.length : end] = values
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def select(self, source: Cache, sequences: Sequence[int]) -> None:
        """Become a copy of these sequences of `source`, in this order; of itself, too."""
        end = self.length = source.length
        picked = list(sequences)
        for ours, theirs in ((self._keys, source._keys), (self._values, source._values)):
            for layer in range(len(ours)):  # one at a time: `theirs[picked]` is a copy
                ours[layer][:, :, :end] = theirs[layer][picked, :, :end]

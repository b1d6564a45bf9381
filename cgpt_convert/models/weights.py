"""The parameters of a model as float32 arrays: read a block at a time, or all kept in memory."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from cgpt_convert.dtypes import FLOAT32
from cgpt_convert.models.backend import Array, Backend
from cgpt_convert.models.gpt2 import Affine, Block, Embeddings, Final
from cgpt_convert.models.source import Key, Source
from cgpt_convert.output.crew import Crew
from cgpt_convert.tensor import Tensor
from cgpt_convert.values import blocks

if TYPE_CHECKING:
    import numpy as np

_LAYERS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
_HEAD, _WTE, _WPE, _LN_F = "lm_head.weight", "wte.weight", "wpe.weight", "ln_f"


class Weights:
    """A model's parameters, read when they are asked for; see `gpt2.Parameters`.

    The embeddings and the head, once read, are kept. `resident` keeps everything, for generating,
    where each token needs all of it. Else a block is in memory as long as the caller holds it.
    """

    def __init__(self, source: Source, xp: Backend, *, resident: bool = False) -> None:
        self.hyper = source.hyper
        self._source, self._xp = source, xp
        self._kept: dict[Key, Array] = {}
        self._keep: set[Key] = {(_WTE, None), (_WPE, None)}
        if not source.tied:
            self._keep.add((_HEAD, None))
        self._resident = resident
        self._blocks: dict[int, Block] = {}
        if resident:
            self._keep |= source.tensors.keys()

    @property
    def embeddings(self) -> Embeddings:
        """Token and position embeddings."""
        return Embeddings(self._array((_WTE, None)), self._array((_WPE, None)))

    def block(self, layer: int) -> Block:
        """The parameters of a layer, counted from 0."""
        if layer in self._blocks:
            return self._blocks[layer]
        block = Block(*(self._affine(f"h.{{i}}.{name}", layer) for name in _LAYERS))
        if self._resident:
            self._blocks[layer] = block
        return block

    @property
    def final(self) -> Final:
        """The last LayerNorm, and the head."""
        head = _WTE if self._source.tied else _HEAD
        return Final(self._affine(_LN_F, None), self._array((head, None)))

    def load(self, jobs: int) -> None:
        """Read with so many threads what is kept, so that nothing has to be read later."""
        keys = [key for key in self._keep if not (self._source.tied and key[0] == _HEAD)]
        keys.sort(key=lambda key: -self._source.tensors[key].nbytes)
        Crew(jobs).run([functools.partial(self._array, key) for key in keys], blocks.import_all)
        self._source.checkpoint.check_unchanged()

    def _affine(self, name: str, layer: int | None) -> Affine:
        return Affine(*(self._array((f"{name}.{part}", layer)) for part in ("weight", "bias")))

    def _array(self, key: Key) -> Array:
        if key in self._kept:
            return self._kept[key]
        array = self._xp.array(read(self._source.tensors[key]))
        if key in self._keep:
            self._kept[key] = array
        return array


def read(tensor: Tensor) -> np.ndarray:
    """The values as float32, in the tensor's own order: a transposed view is one here as well."""
    wide = tensor.cast(FLOAT32)
    if not tensor.is_c_order and tensor.transposed().is_c_order:
        return wide.transposed().numpy().T
    return wide.numpy()

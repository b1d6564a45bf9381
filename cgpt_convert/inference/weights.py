"""The parameters of a model as float32 arrays, read on use or kept in memory."""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from cgpt_convert.core.threads import WorkerPool, step
from cgpt_convert.inference import memory
from cgpt_convert.inference.backend import Array, Backend
from cgpt_convert.inference.load import Key, ModelSource
from cgpt_convert.tensors.dtypes import FLOAT32
from cgpt_convert.tensors.prefetch import near
from cgpt_convert.tensors.read import import_all
from cgpt_convert.tensors.tensor import Tensor, replace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ids = NDArray[np.int64]


class ModelWeights:
    """A model's parameters, read on access; see `Parameters` of the forward pass.

    `resident` keeps everything, for generation, where each token needs all parameters. Otherwise
    blocks and embedding rows are in memory while the caller holds them, and the head is kept once
    it is requested as a whole.
    """

    def __init__(self, source: ModelSource, xp: Backend, *, resident: bool = False) -> None:
        self.hyper, self._forward = source.hyper, source.forward
        self._source, self._xp = source, xp
        self._head: Key = (source.forward.EMBEDDING if source.tied else source.forward.HEAD, None)
        self._embedding: Key = (source.forward.EMBEDDING, None)
        self._tables: dict[Key, Tensor] = {}
        self._kept: dict[Key, Array] = {}
        self._keep: set[Key] = {self._head}
        if resident:
            unused = {(source.forward.HEAD, None)} - self._keep
            self._keep |= source.tensors.keys() - unused
        self._resident = resident
        self._blocks: dict[int, tuple[Any, ...]] = {}
        self.require_memory()

    def embeddings(self, ids: Ids) -> Array:
        """Return the embeddings (len(ids), n_embd) of these tokens."""
        kept = self._whole(self._embedding)
        if kept is not None:
            return self._xp.rows(kept, ids)
        return self._xp.array(gathered(self._table(self._embedding), ids))

    def positions(self, start: int, stop: int) -> Array:
        """Return the embeddings (stop - start, n_embd) of these positions."""
        return self._rows((self._forward.POSITIONS, None), start, stop)

    def block(self, layer: int) -> tuple[Any, ...]:
        """Return the parameters of a layer, counted from 0."""
        if layer in self._blocks:
            return self._blocks[layer]
        names = self._forward.BLOCK
        block: tuple[Any, ...] = self._forward.Block(*(self._affine(name, layer) for name in names))
        if self._resident:
            self._blocks[layer] = block
        return block

    @property
    def final_norm(self) -> tuple[Array, Array]:
        """The final LayerNorm."""
        return self._affine(self._forward.FINAL_NORM, None)

    @property
    def head(self) -> Array:
        """The head (vocab_size, n_embd)."""
        if self._head not in self._kept and not self._resident:
            self.require_memory(_nbytes(self._source.tensors[self._head]))
        return self._array(self._head)

    def head_rows(self, start: int, stop: int) -> Array:
        """Return the rows (stop - start, n_embd) of the head for these tokens."""
        return self._rows(self._head, start, stop)

    def outstanding(self) -> int:
        """Return the bytes of resident weights that are not read yet; see `memory`."""
        keys = self._keep - self._kept.keys() if self._resident else ()
        return sum(_nbytes(self._source.tensors[key]) for key in keys)

    def require_memory(self, more: int = 0) -> None:
        """Raise Unsupported unless `more` bytes and all weights still to be read fit in memory."""
        block = 0 if self._resident else _largest_block(self._source)
        nbytes = self.outstanding() + block + more
        memory.require(self, nbytes, self._xp.free(), self._source.checkpoint.path)

    def load(self, jobs: int) -> None:
        """Read all resident weights with `jobs` threads."""
        keys = sorted(self._keep, key=lambda key: -self._source.tensors[key].nbytes)
        with step("loading", sum(self._source.tensors[key].nbytes for key in keys)) as advance:
            workers = WorkerPool(jobs, advance)

            def load(key: Key) -> None:
                self._array(key)
                workers.advance(self._source.tensors[key].nbytes)

            workers.run([functools.partial(load, key) for key in keys], import_all)
        self._source.checkpoint.check_unchanged()

    def _affine(self, name: str, layer: int | None) -> tuple[Array, Array]:
        parts = (self._array((f"{name}.{part}", layer)) for part in ("weight", "bias"))
        affine: tuple[Array, Array] = self._forward.Affine(*parts)
        return affine

    def _array(self, key: Key) -> Array:
        if key in self._kept:
            return self._kept[key]
        tensor = self._tables.get(key) or self._source.tensors[key]
        array = self._xp.array(read(tensor))
        if key in self._keep:
            self._kept[key] = array
        return array

    def _whole(self, key: Key) -> Array | None:
        """Return the array if it is or will be kept in memory, else None."""
        return self._array(key) if self._resident else self._kept.get(key)

    def _rows(self, key: Key, start: int, stop: int) -> Array:
        kept = self._whole(key)
        if kept is not None:
            return kept[start:stop]
        return self._xp.array(read(rows(self._table(key), start, stop)))

    def _table(self, key: Key) -> Tensor:
        """Return a matrix prepared for repeated reads of rows in any order."""
        if key not in self._tables:
            self._tables[key] = near(self._source.tensors[key])
        return self._tables[key]


def _nbytes(tensor: Tensor) -> int:
    """Return the size of the tensor as float32, in bytes."""
    return FLOAT32.nbytes * math.prod(tensor.shape)


def _largest_block(source: ModelSource) -> int:
    """Return the size of the largest layer as float32, in bytes."""
    layers: Counter[int] = Counter()
    for (_, layer), tensor in source.tensors.items():
        if layer is not None:
            layers[layer] += _nbytes(tensor)
    return max(layers.values(), default=0)


def read(tensor: Tensor) -> Floats:
    """Return the values as float32; a transposed view stays a transposed view."""
    wide = tensor.cast(FLOAT32)
    if not tensor.is_c_order and tensor.transposed().is_c_order:
        return wide.transposed().numpy().T
    return wide.numpy()


def gathered(table: Tensor, ids: Ids) -> Floats:
    """Return these rows of a matrix as float32. Each row is read once, others are not read."""
    import numpy as np

    wanted, places = np.unique(ids, return_inverse=True)
    views = [rows(table, row, row + 1) for row in wanted.tolist()]
    return np.concatenate([read(view) for view in views])[places]


def rows(table: Tensor, start: int, stop: int) -> Tensor:
    """Return the view of rows `start` to `stop` (exclusive) of a matrix."""
    first = table.start + start * table.strides[0]
    return replace(table, shape=(stop - start, *table.shape[1:]), start=first)

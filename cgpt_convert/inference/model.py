"""A model that maps token IDs to hidden states and logits, from a file of any format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest, Unsupported
from cgpt_convert.inference.backend import Array, Backend, backend
from cgpt_convert.inference.kv_cache import KVCache
from cgpt_convert.inference.load import source
from cgpt_convert.inference.weights import ModelWeights

if TYPE_CHECKING:
    import numpy as np

ROWS = 256  # positions whose logits are computed at once
PART_NBYTES = 4 << 20  # of the head and of logits, when computed in parts of the vocabulary


class Model:
    """A model and its backend. Returned arrays are NumPy float32.

    Unless `resident`, each pass reads the weights again: one block is in memory, and the head once
    whole rows of logits have been requested. BadRequest is raised for IDs outside the vocabulary
    and for more tokens than positions, Unsupported if the available memory is insufficient.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: str | Backend = "numpy",
        *,
        heads: int | None = None,
        activation: str | None = None,
        assumed: Mapping[str, Any] | None = None,
        resident: bool = False,
    ) -> None:
        self.source = source(checkpoint, heads, activation, assumed)
        self.hyper, self.forward = self.source.hyper, self.source.forward
        self.xp = backend(engine) if isinstance(engine, str) else engine
        self.weights = ModelWeights(self.source, self.xp, resident=resident)
        self.path = checkpoint.path

    def load(self, jobs: int) -> None:
        """Read the weights that stay in memory, with `jobs` threads."""
        self.weights.load(jobs)

    def cache(self, batch: int = 1, capacity: int | None = None) -> KVCache:
        """Return an empty cache for `batch` sequences, by default for all positions.

        Raises Unsupported if it does not fit into memory together with the resident weights.
        """
        nbytes = KVCache.nbytes(self.hyper, batch, capacity or self.hyper.n_positions)
        self.weights.require_memory(nbytes)
        return KVCache(self.xp, self.hyper, batch, capacity or self.hyper.n_positions)

    def states(
        self, ids: Sequence[Sequence[int]] | np.ndarray, cache: KVCache | None = None
    ) -> Iterator[np.ndarray]:
        """Yield the residual stream (b, t, n_embd) after the embeddings, then after each layer.

        Copies are avoided if possible, so an array is only valid until the next one.
        """
        checked = self.checked(ids, cache)
        for state in self.forward.hidden_states(self.xp, checked, self.weights, cache):
            yield self.xp.numpy(state)

    def hidden(
        self, ids: Sequence[Sequence[int]] | np.ndarray, cache: KVCache | None = None
    ) -> np.ndarray:
        """Return the normed last state (b, t, n_embd), whose rows `logits` takes."""
        return self.xp.numpy(self._hidden(self.checked(ids, cache), cache))

    def normed(self, rows: np.ndarray) -> np.ndarray:
        """Return normed rows (m, n_embd) of the last of `states`."""
        norm = self.weights.final_norm
        return self.xp.numpy(
            self.forward.final_norm(self.xp, self.xp.array(rows), norm, self.hyper)
        )

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Return the logits (m, vocab_size) of rows (m, n_embd) of `hidden`."""
        return self.xp.numpy(self.forward.logits(self.xp, self.xp.array(rows), self.weights.head))

    def logits_by_vocabulary(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the logits in consecutive parts (m, k) of the vocabulary.

        Only a part of the head is in memory. Two models of the same sizes have parts of the same
        sizes.
        """
        x, vocabulary = self.xp.array(rows), self.hyper.vocab_size
        step = max(PART_NBYTES // (4 * max(rows.shape)), 1)
        for start in range(0, vocabulary, step):
            stop = min(start + step, vocabulary)
            yield self.xp.numpy(
                self.forward.logits(self.xp, x, self.weights.head_rows(start, stop))
            )

    def logits_in_blocks(self, ids: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
        """Yield the logits of one sequence in blocks (m, vocab_size) of up to `ROWS` positions."""
        import numpy as np

        hidden = self.hidden(np.asarray(ids)[None])[0]
        for start in range(0, len(hidden), ROWS):
            yield self.logits(hidden[start : start + ROWS])

    def next_logits(
        self, ids: Sequence[Sequence[int]] | np.ndarray, cache: KVCache | None = None
    ) -> np.ndarray:
        """Return the logits (b, vocab_size) after the last token of each sequence, as a new array.

        Raises Unsupported if the maximum of a row is not finite.
        """
        import numpy as np

        hidden = self._hidden(self.checked(ids, cache), cache)
        logits = self.xp.numpy(self.forward.logits(self.xp, hidden[:, -1], self.weights.head))
        if not np.isfinite(logits.max(axis=-1)).all():
            raise Unsupported(
                "the model's logits are NaN or infinite",
                where=self.path,
                hint="run inspect --stats to see which tensors contain NaN or Inf",
            )
        return logits

    def checked(
        self, ids: Sequence[Sequence[int]] | np.ndarray, cache: KVCache | None = None
    ) -> np.ndarray:
        """Return the IDs (b, t) as int64. Raises BadRequest if they are invalid; see the class."""
        import numpy as np

        checked = np.asarray(ids, np.int64)
        if checked.ndim != 2 or checked.size == 0:  # noqa: PLR2004  sequences of tokens
            raise BadRequest(
                "there are no tokens", where=self.path, hint="pass at least one token ID or word"
            )
        low, high, vocabulary = int(checked.min()), int(checked.max()), self.hyper.vocab_size
        if low < 0 or high >= vocabulary:
            bad = low if low < 0 else high
            raise BadRequest(
                f"the token ID {bad} is not in the vocabulary",
                where=self.path,
                hint=f"use IDs from 0 to {vocabulary - 1:,}",
            )
        past, most = (cache.length, cache.capacity) if cache else (0, self.hyper.n_positions)
        if past + checked.shape[1] > min(most, self.hyper.n_positions):
            raise BadRequest(
                f"{past + checked.shape[1]:,} tokens exceed the model's {most:,} positions",
                where=self.path,
                hint="pass fewer tokens",
            )
        return checked

    def _hidden(self, ids: np.ndarray, cache: KVCache | None) -> Array:
        for state in self.forward.hidden_states(self.xp, ids, self.weights, cache):
            last = state
        return self.forward.final_norm(self.xp, last, self.weights.final_norm, self.hyper)

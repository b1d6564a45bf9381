"""Choose the next token from logits: repeat blocking, warping and sampling.

Each step equals that of transformers' `generate` with the same name (generation/logits_process.py),
in its order: no_repeat_ngram_size, temperature, top_k, top_p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


class SamplingOptions(NamedTuple):
    """Changes of the sampling distribution; the defaults change nothing."""

    temperature: float = 1.0
    top_k: int = 0  # only the k most likely tokens; 0 for all
    top_p: float = 1.0  # only the most likely tokens with this total probability


def forbid_repeats(logits: Floats, ids: Sequence[int], n: int) -> None:
    """Set the logits of tokens that would repeat an n-gram of `ids` to -inf."""
    for token in repeats(ids, n):
        logits[token] = -np.inf


def repeats(ids: Sequence[int], n: int) -> set[int]:
    """Return the tokens that followed earlier occurrences of the last n - 1 ids; none if n is 0."""
    if n == 0 or len(ids) + 1 < n:
        return set()
    last = list(ids[len(ids) - n + 1 :])
    starts = range(len(ids) - n + 1)
    return {ids[at + n - 1] for at in starts if list(ids[at : at + n - 1]) == last}


def warped(logits: Floats, warp: SamplingOptions) -> Floats:
    """Return the logits (vocab_size,) divided by the temperature, with excluded ones -inf."""
    scaled: Floats = logits / np.float32(warp.temperature)
    if 0 < warp.top_k < len(scaled):
        least = np.partition(scaled, -warp.top_k)[-warp.top_k]
        scaled[scaled < least] = -np.inf
    if warp.top_p < 1:
        rising = np.argsort(scaled, kind="stable")
        below = np.cumsum(softmax(scaled[rising]), dtype=np.float32)
        cut = below <= np.float32(1 - warp.top_p)
        cut[-1] = False  # the most likely token is always kept
        scaled[rising[cut]] = -np.inf
    return scaled


def choose(logits: Floats, warp: SamplingOptions, random: np.random.Generator) -> int:
    """Return a token drawn from the warped distribution."""
    reach = np.cumsum(softmax(warped(logits, warp)), dtype=np.float64)
    return int(np.searchsorted(reach, random.random() * reach[-1], side="right"))


def softmax(logits: Floats) -> Floats:
    """Return the probabilities along the last axis."""
    weights: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def log_softmax(logits: Floats) -> Floats:
    """Return the log-probabilities along the last axis."""
    shifted: Floats = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted

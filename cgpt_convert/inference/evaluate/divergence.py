"""The divergence of one model's predictions from another's, for example after quantization.

The measures are those of llama.cpp's perplexity tool with `--kl-divergence`
(tools/perplexity/perplexity.cpp): for each predicted token, the Kullback-Leibler divergence of the
two distributions, and whether both have the same top-1 token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cgpt_convert.inference.evaluate.cross_entropy import Loss, Scorer, scored_logits
from cgpt_convert.inference.evaluate.text_windows import TokenWindow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cgpt_convert.inference.evaluate.cross_entropy import Floats, Ids

    Doubles = NDArray[np.float64]

_ROWS = 64  # positions converted to float64 at once


class Divergence(NamedTuple):
    """The divergence of a model Q's predictions from those of a base P, over a text's tokens."""

    base: Loss
    other: Loss
    kl: Doubles  # (tokens,) nats: sum of p (log p - log q) over the vocabulary
    same_top: int  # number of positions with the same top-1 token
    p_change: Doubles  # (tokens,) change of the correct token's probability

    @property
    def kl_mean(self) -> float:
        """The mean divergence, in nats."""
        return float(self.kl.mean())

    @property
    def kl_error(self) -> float:
        """The standard error of the mean; 0 for a single token."""
        count = len(self.kl)
        return float(self.kl.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0

    def kl_percentile(self, percent: float) -> float:
        """Return the percentile of the divergence, interpolated linearly."""
        return float(np.percentile(self.kl, percent))

    @property
    def kl_max(self) -> float:
        """The maximum divergence at any token."""
        return float(self.kl.max())

    @property
    def top_agreement(self) -> float:
        """The fraction of positions with the same top-1 token."""
        return self.same_top / len(self.kl)

    @property
    def perplexity_ratio(self) -> float:
        """Q's perplexity divided by P's."""
        return math.exp(self.other.cross_entropy - self.base.cross_entropy)

    @property
    def p_change_rms(self) -> float:
        """The root mean square of the changes of the correct token's probability."""
        return float(np.sqrt((self.p_change**2).mean()))


def diverge(
    base: Scorer, other: Scorer, sequence: Ids, windows: Iterable[TokenWindow], vocabulary: int
) -> Divergence:
    """Return the divergence over windows of `sequence`; see `cross_entropy.evaluate`.

    Memory holds both models' logits of a few positions, and 16 bytes per token.
    """
    first, second = itertools.tee(windows)
    ours = scored_logits(base, sequence, first, vocabulary)
    theirs = scored_logits(other, sequence, second, vocabulary)
    results = [
        _compare(p[start : start + _ROWS], q[start : start + _ROWS], targets[start : start + _ROWS])
        for (p, targets), (q, _) in zip(ours, theirs, strict=True)
        for start in range(0, len(p), _ROWS)
    ]
    kl, p_nats, q_nats, tops = (np.concatenate(parts) for parts in zip(*results, strict=True))
    p_top, q_top, same = (int(part.sum()) for part in tops.T)
    return Divergence(
        Loss(float(p_nats.sum()), len(kl), p_top),
        Loss(float(q_nats.sum()), len(kl), q_top),
        kl,
        same,
        np.exp(-q_nats) - np.exp(-p_nats),
    )


def _compare(
    p: Floats, q: Floats, targets: Ids
) -> tuple[Doubles, Doubles, Doubles, NDArray[np.bool_]]:
    """Return the rows' divergences, both models' nats, and their top-1 comparisons (m, 3)."""
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    rows = np.arange(len(targets))
    top_p, top_q = p.argmax(-1), q.argmax(-1)
    tops = np.stack([top_p == targets, top_q == targets, top_p == top_q], axis=1)
    return kl, -log_p[rows, targets], -log_q[rows, targets], tops


def _log_softmax(logits: Floats) -> Doubles:
    wide: Doubles = logits - logits.max(-1, keepdims=True).astype(np.float64)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide

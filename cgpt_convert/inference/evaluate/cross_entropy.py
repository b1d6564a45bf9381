"""Cross-entropy of a text under a model, as lm-evaluation-harness defines its rolling measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from cgpt_convert.inference.evaluate.windows import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ids = NDArray[np.int64]

LOGITS_NBYTES = 32 << 20  # of logits in memory at once


class Scorer(Protocol):
    """What is asked of a model."""

    def hidden(self, ids: Ids) -> Floats:
        """The normed last states (b, t, n) of sequences (b, t)."""

    def logits(self, rows: Floats) -> Floats:
        """The logits (m, vocabulary) of rows (m, n) of `hidden`."""


class Loss(NamedTuple):
    """What predicting a text cost."""

    nats: float  # of all tokens together: minus the logarithm of the text's probability
    tokens: int
    top: int  # how many of them the model held for the likeliest

    @property
    def cross_entropy(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """The exponential of the cross-entropy; infinite where that is past a float's range."""
        try:
            return math.exp(self.cross_entropy)
        except OverflowError:
            return math.inf

    def bits_per_byte(self, nbytes: int) -> float:
        """Bits for each of the text's UTF-8 bytes; other than a token's, they compare models."""
        return self.nats / math.log(2) / nbytes


def evaluate(model: Scorer, sequence: Ids, windows: Iterable[Window], vocabulary: int) -> Loss:
    """The loss over those windows of `sequence`, the end-of-text token and a text's tokens."""
    nats, tokens, top = 0.0, 0, 0
    for logits, targets in scored_logits(model, sequence, windows, vocabulary):
        nats += float(token_nats(logits, targets).sum())
        tokens += len(targets)
        top += int((logits.argmax(-1) == targets).sum())
    return Loss(nats, tokens, top)


def scored_logits(
    model: Scorer, sequence: Ids, windows: Iterable[Window], vocabulary: int
) -> Iterator[tuple[Floats, Ids]]:
    """Logits (m, vocabulary) and the tokens (m,) that followed, of few enough positions at once."""
    rows = max(1, LOGITS_NBYTES // (4 * vocabulary))
    for start, stop, scored in windows:
        hidden = model.hidden(sequence[None, start:stop])[0, -scored:]
        targets = sequence[stop + 1 - scored : stop + 1]
        for first in range(0, scored, rows):
            yield model.logits(hidden[first : first + rows]), targets[first : first + rows]


def token_nats(logits: Floats, targets: Ids) -> NDArray[np.float64]:
    """Minus the log-probability (m,) of each target under logits (m, vocabulary).

    Exponentials are float32 and their sum float64, so that it is right to the last digit or two of
    what float32 logits tell.
    """
    highest = logits.max(-1)
    total = np.exp(logits - highest[:, None]).sum(-1, dtype=np.float64)
    there = logits[np.arange(len(targets)), targets]
    nats: NDArray[np.float64] = np.log(total) - (there.astype(np.float64) - highest)
    return nats

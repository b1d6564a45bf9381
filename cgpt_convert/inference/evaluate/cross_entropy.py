"""Cross-entropy of a text under a model, as in lm-evaluation-harness's rolling measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from cgpt_convert.inference.evaluate.text_windows import TokenWindow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ids = NDArray[np.int64]

LOGITS_NBYTES = 32 << 20  # bytes of logits in memory at once


class Scorer(Protocol):
    """The interface that evaluation needs of a model."""

    def hidden(self, ids: Ids) -> Floats:
        """Return the normed last states (b, t, n) of sequences (b, t)."""

    def logits(self, rows: Floats) -> Floats:
        """Return the logits (m, vocabulary) of rows (m, n) of `hidden`."""


class Loss(NamedTuple):
    """The loss of predicting a text."""

    nats: float  # total: minus the log-probability of the text
    tokens: int
    top: int  # number of tokens that were the model's top-1 prediction

    @property
    def cross_entropy(self) -> float:
        """The cross-entropy in nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """The exponential of the cross-entropy; infinite on overflow."""
        try:
            return math.exp(self.cross_entropy)
        except OverflowError:
            return math.inf

    def bits_per_byte(self, nbytes: int) -> float:
        """Return bits per UTF-8 byte, which is comparable between tokenizers."""
        return self.nats / math.log(2) / nbytes


def evaluate(model: Scorer, sequence: Ids, windows: Iterable[TokenWindow], vocabulary: int) -> Loss:
    """Return the loss over windows of `sequence`, an end-of-text token and the text's tokens."""
    nats, tokens, top = 0.0, 0, 0
    for logits, targets in scored_logits(model, sequence, windows, vocabulary):
        nats += float(token_nats(logits, targets).sum())
        tokens += len(targets)
        top += int((logits.argmax(-1) == targets).sum())
    return Loss(nats, tokens, top)


def scored_logits(
    model: Scorer, sequence: Ids, windows: Iterable[TokenWindow], vocabulary: int
) -> Iterator[tuple[Floats, Ids]]:
    """Yield logits (m, vocabulary) and the following tokens (m,), within the memory limit."""
    rows = max(1, LOGITS_NBYTES // (4 * vocabulary))
    for start, stop, scored in windows:
        hidden = model.hidden(sequence[None, start:stop])[0, -scored:]
        targets = sequence[stop + 1 - scored : stop + 1]
        for first in range(0, scored, rows):
            yield model.logits(hidden[first : first + rows]), targets[first : first + rows]


def token_nats(logits: Floats, targets: Ids) -> NDArray[np.float64]:
    """Return minus the log-probability (m,) of each target under logits (m, vocabulary).

    Exponentials are float32 and their sum is float64, which keeps nearly all of the precision of
    float32 logits.
    """
    highest = logits.max(-1)
    total = np.exp(logits - highest[:, None]).sum(-1, dtype=np.float64)
    there = logits[np.arange(len(targets)), targets]
    nats: NDArray[np.float64] = np.log(total) - (there.astype(np.float64) - highest)
    return nats

"""Split a text longer than the context, so that each token is predicted once.

As in lm-evaluation-harness (`lm_eval/utils.py`, `get_rolling_token_windows`), the first window has
new tokens only. Each later one ends with `stride` new tokens, after earlier tokens as context.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class TokenWindow(NamedTuple):
    """A slice of the end-of-text token and the text's tokens; its last `scored` are scored."""

    start: int
    stop: int  # exclusive; the token at `stop` is the last one predicted
    scored: int


def rolling_windows(tokens: int, context: int, stride: int) -> Iterator[TokenWindow]:
    """Yield windows of at most `context` tokens that predict each of `tokens` tokens once.

    With `stride` equal to `context`, they equal those of lm-eval's `loglikelihood_rolling`, whose
    `context_len` is `context - stride + 1`. The stride is 1 to `context`.
    """
    done = min(context, tokens)
    if done:
        yield TokenWindow(0, done, done)
    while done < tokens:
        scored = min(stride, tokens - done)
        done += scored
        yield TokenWindow(done - context, done, scored)


def count(tokens: int, context: int, stride: int) -> int:
    """Return the number of windows of `rolling_windows`."""
    return (tokens > 0) + max(0, -(-(tokens - context) // stride))

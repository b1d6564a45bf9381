"""How a text longer than a model's context is cut, so that each of its tokens is predicted once.

As lm-evaluation-harness does (`lm_eval/utils.py`, `get_rolling_token_windows`): the first window is
full of new tokens, each later one has `stride` of them at its end and what came before as context.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Window(NamedTuple):
    """A slice of the end-of-text token and a text's tokens after it; its last ones are scored."""

    start: int
    stop: int  # exclusive; the token at `stop` is the last that is predicted
    scored: int


def rolling_windows(tokens: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of at most `context` tokens that predict each of a text's `tokens` tokens once.

    With `stride` equal to `context`, what lm-eval's `loglikelihood_rolling` computes: its
    `context_len` is `context - stride + 1`. The stride is 1 to `context`.
    """
    done = min(context, tokens)
    if done:
        yield Window(0, done, done)
    while done < tokens:
        scored = min(stride, tokens - done)
        done += scored
        yield Window(done - context, done, scored)


def count(tokens: int, context: int, stride: int) -> int:
    """How many windows `rolling_windows` gives."""
    return (tokens > 0) + max(0, -(-(tokens - context) // stride))

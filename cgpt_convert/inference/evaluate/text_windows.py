"""A text prepared for evaluation: its tokens, and their windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cgpt_convert.core.errors import BadRequest, Unsupported
from cgpt_convert.core.threads import step
from cgpt_convert.inference.model import Model
from cgpt_convert.inference.text_codec import Encoder, find
from cgpt_convert.targets.tokenizer.bpe import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


class WindowedText(NamedTuple):
    """A text's tokens and the windows in which they are predicted."""

    sequence: NDArray[np.int64]  # the prefix token, then the text's tokens
    context: int
    stride: int

    @property
    def tokens(self) -> int:
        """The number of tokens to predict."""
        return len(self.sequence) - 1

    @property
    def window_count(self) -> int:
        """The number of windows."""
        return count(self.tokens, self.context, self.stride)

    def windows(self) -> Iterator[TokenWindow]:
        """Return the windows of `sequence`, each computed in one pass."""
        return rolling_windows(self.tokens, self.context, self.stride)


def read_passage(
    model: Model, text: str, folder: str | None, context: int | None, stride: int | None
) -> WindowedText:
    """Encode the text with the tokenizer in `folder`, else with the one in or next to the model.

    By default the context is all positions of the model, and the stride is the context. Raises
    BadRequest for an impossible context or stride, and if there is no tokenizer.
    """
    most = model.hyper.n_positions
    context = context or most
    stride = stride or context
    if context > most:
        raise BadRequest(
            f"a context of {context:,} tokens exceeds the model's {most:,} positions",
            where=model.path,
            hint=f"use --context {most} or less",
        )
    if stride > context:
        raise BadRequest(
            f"a stride of {stride:,} tokens exceeds the context of {context:,}",
            hint=f"use --stride {context} or less",
        )
    tokenizer = find(model.source.checkpoint, folder, model.hyper.vocab_size)
    with step("tokenizing"):
        ids = [prefix_id(tokenizer, model.path), *Encoder(tokenizer).encode(text, special=False)]
    return WindowedText(np.array(ids, np.int64), context, stride)


def prefix_id(tokenizer: Tokenizer, path: str) -> int:
    """Return the token before a text: the tokenizer's bos, else its eos, as in lm-eval.

    Raises Unsupported, naming the model's `path`, if there is neither.
    """
    prefix = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
    if prefix is None:
        raise Unsupported(
            "the tokenizer has no beginning-of-text or end-of-text token",
            where=path,
            hint="pass another tokenizer with --tokenizer DIR",
        )
    return prefix


def check_alike(model: Model, other: Model) -> None:
    """Raise BadRequest unless both models have the same vocabulary size and positions."""
    for size in ("vocab_size", "n_positions"):
        ours, theirs = getattr(model.hyper, size), getattr(other.hyper, size)
        if ours != theirs:
            raise BadRequest(
                f"{size} is {theirs:,}, but {ours:,} in {model.path}: cannot compare the models",
                where=other.path,
            )

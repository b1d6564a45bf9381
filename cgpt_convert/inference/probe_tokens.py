"""The tokens that two models are given to be compared."""

from __future__ import annotations

from cgpt_convert.inference.model import Model
from cgpt_convert.inference.text import Encoder, find

TOKENS = 64  # by default: with so many the tolerances were measured
_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, less their integers, fill 0 to 1 most evenly


def spread(model: Model) -> list[int]:
    """Tokens from all over the vocabulary, the same for each model of its size.

    `TOKENS` of them, or as many as the model has positions.
    """
    vocabulary = model.hyper.vocab_size
    count = min(TOKENS, model.hyper.n_positions)
    return [int((number + 0.5) * _GOLDEN % 1 * vocabulary) for number in range(count)]


def beginning(model: Model, text: str, folder: str | None) -> list[int]:
    """The text's first tokens, as many as the model has positions.

    The tokenizer is that in `folder`, else in or beside the model. Raises as `text.find`.
    """
    tokenizer = find(model.source.checkpoint, folder, model.hyper.vocab_size)
    return Encoder(tokenizer).encode(text)[: model.hyper.n_positions]

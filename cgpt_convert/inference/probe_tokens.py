"""The tokens for comparing two models."""

from __future__ import annotations

from cgpt_convert.inference.model import Model
from cgpt_convert.inference.text_codec import Encoder, find

TOKENS = 64  # the default; the tolerances were measured with this number
_GOLDEN = (5**0.5 - 1) / 2  # fractional parts of its multiples fill 0 to 1 evenly


def spread(model: Model) -> list[int]:
    """Return token IDs spread over the vocabulary, the same for each model of that size.

    There are `TOKENS` of them, or as many as the model has positions.
    """
    vocabulary = model.hyper.vocab_size
    count = min(TOKENS, model.hyper.n_positions)
    return [int((number + 0.5) * _GOLDEN % 1 * vocabulary) for number in range(count)]


def beginning(model: Model, text: str, folder: str | None) -> list[int]:
    """Return the text's first tokens, as many as the model has positions.

    The tokenizer is the one in `folder`, else in or beside the model. Raises the errors of
    `text.find`.
    """
    tokenizer = find(model.source.checkpoint, folder, model.hyper.vocab_size)
    return Encoder(tokenizer).encode(text)[: model.hyper.n_positions]

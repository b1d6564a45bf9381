"""A prompt -> the tokens that a model continues it with, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cgpt_convert.inference.generate import beam_search as beams
from cgpt_convert.inference.generate import sampling
from cgpt_convert.inference.generate.settings import Settings, check
from cgpt_convert.inference.model import Model


def generate(model: Model, prompt: Sequence[int], settings: Settings) -> Iterator[int]:
    """The new tokens, each as soon as it is known: with beams that is all at once, at the end.

    Raises BadRequest before anything is computed for what does not fit into the model, Unsupported
    for weights that give no numbers.
    """
    check(model, prompt, settings)
    if settings.beams > 1:
        return iter(beams.search(model, prompt, settings))
    return _one_by_one(model, list(prompt), settings)


def _one_by_one(model: Model, ids: list[int], settings: Settings) -> Iterator[int]:
    random = np.random.default_rng(settings.seed)
    cache = model.cache(1, len(ids) + settings.max_new_tokens)
    fed = 0
    for _ in range(settings.max_new_tokens):
        logits = model.next_logits([ids[fed:]], cache)[0]
        fed = len(ids)
        sampling.forbid_repeats(logits, ids, settings.no_repeat_ngram)
        if settings.warp is None:
            token = int(logits.argmax())
        else:
            token = sampling.choose(logits, settings.warp, random)
        ids.append(token)
        yield token
        if token in settings.ends:
            return

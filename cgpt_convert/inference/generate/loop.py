"""Generate the tokens that continue a prompt, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np

from cgpt_convert.core.threads import step
from cgpt_convert.inference.generate import beam_search, sampling
from cgpt_convert.inference.generate.generation_settings import GenerationSettings, check
from cgpt_convert.inference.model import Model


def generate(model: Model, prompt: Sequence[int], settings: GenerationSettings) -> Iterator[int]:
    """Yield the new tokens as they are generated; with beams, all at the end.

    Raises BadRequest before any computation if the request does not fit the model, Unsupported if
    the logits are not finite.
    """
    check(model, prompt, settings)
    if settings.beams > 1:
        return iter(beam_search.search(model, prompt, settings))
    return _one_by_one(model, list(prompt), settings)


def _one_by_one(model: Model, ids: list[int], settings: GenerationSettings) -> Iterator[int]:
    random = np.random.default_rng(settings.seed)
    cache = model.cache(1, len(ids) + settings.max_new_tokens)
    fed = 0
    for _ in range(settings.max_new_tokens):
        with step("reading the prompt") if not fed else nullcontext():
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

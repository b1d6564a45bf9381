"""A prompt -> the tokens that a model continues it with, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cgpt_convert.errors import BadRequest, Unsupported
from cgpt_convert.models import sampling
from cgpt_convert.models.cache import Cache
from cgpt_convert.models.model import Model
from cgpt_convert.models.sampling import Warp

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Settings(NamedTuple):
    """How to continue. Without `warp` the likeliest token is taken, or the best of `beams`."""

    max_new_tokens: int
    ends: frozenset[int] = frozenset()  # tokens that end the text; the one that does is given, too
    no_repeat_ngram: int = 0  # no run of so many tokens occurs twice; 0 allows all
    warp: Warp | None = None
    seed: int | None = None  # None: another text each time
    beams: int = 1
    early_stopping: bool = False  # end when there are as many finished texts as beams


def check_settings(settings: Settings) -> None:
    """Raise BadRequest for numbers that mean nothing, and for what cannot be had together."""
    warp = settings.warp or Warp()
    wrong = {
        "max_new_tokens": settings.max_new_tokens < 1,
        "no_repeat_ngram": settings.no_repeat_ngram < 0,
        "beams": settings.beams < 1,
        "seed": (settings.seed or 0) < 0,
        "temperature": not 0 < warp.temperature < float("inf"),
        "top_k": warp.top_k < 0,
        "top_p": not 0 < warp.top_p <= 1,
    }
    values = settings._asdict() | warp._asdict()
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise BadRequest(f"{name} is {values[name]}")
    if settings.beams > 1 and settings.warp:
        raise BadRequest("beams search and do not sample", hint="ask for one of the two")


def check(model: Model, prompt: Sequence[int], settings: Settings) -> None:
    """Raise BadRequest if the model has not the positions for all that is asked for."""
    check_settings(settings)
    most, needed = model.hyper.n_positions, len(prompt) + settings.max_new_tokens
    if not prompt:
        raise BadRequest("the prompt has no tokens", hint="give the model a word to begin with")
    if needed > most:
        room = most - len(prompt)
        hint = f"say --max-new-tokens {room} or fewer" if room > 0 else "shorten the prompt"
        raise BadRequest(
            f"a prompt of {len(prompt):,} and {settings.max_new_tokens:,} new tokens: more than "
            f"the {most:,} positions of the model",
            where=model.path,
            hint=hint,
        )


def generate(model: Model, prompt: Sequence[int], settings: Settings) -> Iterator[int]:
    """The new tokens, each as soon as it is known: with beams that is all at once, at the end.

    Raises BadRequest before anything is computed for what does not fit into the model, Unsupported
    for weights that give no numbers.
    """
    check(model, prompt, settings)
    if settings.beams > 1:
        from cgpt_convert.models.beams import search

        return iter(search(model, prompt, settings))
    return _one_by_one(model, list(prompt), settings)


def _one_by_one(model: Model, ids: list[int], settings: Settings) -> Iterator[int]:
    random = np.random.default_rng(settings.seed)
    cache = model.cache(1, len(ids) + settings.max_new_tokens)
    fed = 0
    for _ in range(settings.max_new_tokens):
        logits = next_logits(model, [ids[fed:]], cache)[0]
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


def next_logits(model: Model, ids: list[list[int]], cache: Cache) -> NDArray[np.float32]:
    """As `Model.next_logits`, new and writable; Unsupported if there is no greatest among them."""
    logits: NDArray[np.float32] = model.next_logits(ids, cache)
    if not np.isfinite(logits.max(axis=-1)).all():
        raise Unsupported(
            "the logits are not numbers",
            where=model.path,
            hint="inspect --stats shows which tensors hold NaN or Inf",
        )
    return logits

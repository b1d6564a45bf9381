"""Settings for generation, and checks that they fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cgpt_convert.core.errors import BadRequest
from cgpt_convert.inference.generate.sampling import SamplingOptions
from cgpt_convert.inference.model import Model


class GenerationSettings(NamedTuple):
    """Generation settings. Without `warp`, decoding is greedy or by beam search."""

    max_new_tokens: int
    ends: frozenset[int] = frozenset()  # tokens that end the text; the ending token is returned
    no_repeat_ngram: int = 0  # no n-gram of this size occurs twice; 0 allows all
    warp: SamplingOptions | None = None
    seed: int | None = None  # None: random
    beams: int = 1
    early_stopping: bool = False  # stop at as many finished texts as beams


def check_settings(settings: GenerationSettings) -> None:
    """Raise BadRequest for invalid numbers and for options that exclude each other."""
    warp = settings.warp or SamplingOptions()
    rules = {
        "max_new_tokens": (settings.max_new_tokens >= 1, "at least 1"),
        "no_repeat_ngram": (settings.no_repeat_ngram >= 0, "at least 0"),
        "beams": (settings.beams >= 1, "at least 1"),
        "seed": ((settings.seed or 0) >= 0, "at least 0"),
        "temperature": (0 < warp.temperature < float("inf"), "a finite number greater than 0"),
        "top_k": (warp.top_k >= 0, "at least 0"),
        "top_p": (0 < warp.top_p <= 1, "greater than 0 and at most 1"),
    }
    values = settings._asdict() | warp._asdict()
    for name, (is_valid, rule) in rules.items():
        if not is_valid:
            raise BadRequest(f"{name} is {values[name]}, but must be {rule}")
    if settings.beams > 1 and settings.warp:
        raise BadRequest(
            "beam search and sampling cannot be combined",
            hint="request either more than one beam or sampling",
        )


def check(model: Model, prompt: Sequence[int], settings: GenerationSettings) -> None:
    """Raise BadRequest if the model has too few positions for the request."""
    check_settings(settings)
    most, needed = model.hyper.n_positions, len(prompt) + settings.max_new_tokens
    if not prompt:
        raise BadRequest("the prompt has no tokens", hint="pass at least one word or token ID")
    if needed > most:
        room = most - len(prompt)
        hint = f"use --max-new-tokens {room} or less" if room > 0 else "shorten the prompt"
        raise BadRequest(
            f"a prompt of {len(prompt):,} tokens and {settings.max_new_tokens:,} new tokens exceed "
            f"the model's {most:,} positions",
            where=model.path,
            hint=hint,
        )
    model.checked([prompt])

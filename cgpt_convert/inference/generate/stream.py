"""Continue a prompt: stream the text, and record the reason of the end and the times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import NamedTuple

from cgpt_convert.core.threads import step, untold
from cgpt_convert.inference.generate.generation_settings import GenerationSettings
from cgpt_convert.inference.generate.loop import generate
from cgpt_convert.inference.model import Model
from cgpt_convert.inference.text_codec import Decoder, StopStrings
from cgpt_convert.targets.tokenizer.bpe import Tokenizer

LENGTH, END, STOP = "length", "end", "stop"


class Continuation(NamedTuple):
    """The continuation of a prompt. Times are in seconds."""

    new_ids: list[int]
    text: str | None  # up to the stop string; None without a tokenizer
    ended: str  # LENGTH, END (token) or STOP (string)
    first: float  # until the first token; with beams, until all tokens
    rest: float  # for the other tokens
    tokens_per_second: float | None  # after the first token; None if there are none


def continued(
    model: Model,
    prompt: Sequence[int],
    settings: GenerationSettings,
    tokenizer: Tokenizer | None,
    stops: Sequence[str] = (),
    *,
    show: Callable[[str], object] | None = None,
) -> Continuation:
    """Continue the prompt. `show` gets the text as it is generated, or IDs without a tokenizer.

    Raises the errors of `loop.generate`.
    """
    ids: list[int] = []
    pieces: list[str] = []
    decoder = Decoder(tokenizer) if tokenizer else None
    stop = StopStrings(stops)
    start = first = perf_counter()

    def give(text: str) -> None:
        pieces.append(text)
        if text and show:
            show(text)

    unseen = show is None and settings.beams == 1
    shown = step("generating", settings.max_new_tokens, " tokens") if unseen else None
    with shown or nullcontext(untold) as advance:
        for token in generate(model, prompt, settings):
            first = first if ids else perf_counter()
            ids.append(token)
            advance(1)
            give(stop.feed(decoder.feed(token)) if decoder else f",{token}")
            if stop.stopped:
                break
    end = perf_counter()
    if decoder and not stop.stopped:
        give(stop.feed(decoder.end()))
        give(stop.end())
    ended = LENGTH if ids[-1] not in settings.ends else END
    count, seconds = len(ids) - 1, end - first
    if settings.beams > 1:
        count, seconds = len(ids), end - start
    return Continuation(
        ids,
        "".join(pieces) if decoder else None,
        STOP if stop.stopped else ended,
        first - start,
        end - first,
        count / seconds if count and seconds else None,
    )

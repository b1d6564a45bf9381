"""A prompt continued: the tokens as text while they come, where it ended, how long it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple

from cgpt_convert.inference.generate.loop import generate
from cgpt_convert.inference.generate.settings import Settings
from cgpt_convert.inference.model import Model
from cgpt_convert.inference.text import Decoder, Stops
from cgpt_convert.targets.tokenizer.bpe import Tokenizer

LENGTH, END, STOP = "length", "end", "stop"


class Continuation(NamedTuple):
    """What came after a prompt. Times are in seconds."""

    new_ids: list[int]
    text: str | None  # up to what stopped it; None without a tokenizer
    ended: str  # by LENGTH, an END token or a STOP string
    first: float  # until the first token, from beams until all of them
    rest: float  # for the others
    tokens_per_second: float | None  # after the first; None if there are none


def continued(
    model: Model,
    prompt: Sequence[int],
    settings: Settings,
    tokenizer: Tokenizer | None,
    stops: Sequence[str] = (),
    *,
    show: Callable[[str], object] = lambda _text: None,
) -> Continuation:
    """The continuation. `show` is given its text as it comes: ids, where there is no tokenizer.

    Raises as `generation.generate`.
    """
    ids: list[int] = []
    pieces: list[str] = []
    decoder = Decoder(tokenizer) if tokenizer else None
    stop = Stops(stops)
    start = first = perf_counter()

    def give(text: str) -> None:
        pieces.append(text)
        if text:
            show(text)

    for token in generate(model, prompt, settings):
        first = first if ids else perf_counter()
        ids.append(token)
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

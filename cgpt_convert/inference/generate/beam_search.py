"""Beam search as in transformers' `generate` (generation/utils.py `_beam_search`).

A text's score is the sum of its tokens' log-probabilities. Finished texts are compared by that sum
divided by the number of new tokens (a length penalty of 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cgpt_convert.core.threads import Advance, step
from cgpt_convert.inference.generate import sampling
from cgpt_convert.inference.generate.generation_settings import GenerationSettings
from cgpt_convert.inference.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


class _Beam(NamedTuple):
    score: np.float32
    ids: tuple[int, ...]  # new tokens
    parent: int  # index of the beam that it continues


def search(model: Model, prompt: Sequence[int], settings: GenerationSettings) -> list[int]:
    """Return the new tokens of the best text found, as `loop.generate`."""
    with step("searching", settings.max_new_tokens, " tokens") as advance:
        return _search(model, prompt, settings, advance)


def _search(
    model: Model, prompt: Sequence[int], settings: GenerationSettings, advance: Advance
) -> list[int]:
    width = settings.beams
    caches = model.cache(width, len(prompt) + settings.max_new_tokens)
    alone = model.cache(1, len(prompt))
    logits = model.next_logits([list(prompt)], alone)  # (1, vocab_size): one parent
    caches.select(alone, [0] * width)
    del alone
    running = [_Beam(np.float32(0), (), 0)]
    finished: list[_Beam] = []
    while True:
        advance(1)
        candidates = _candidates(logits, running, prompt, settings)
        last = len(running[0].ids) + 1 == settings.max_new_tokens
        ended = [last or beam.ids[-1] in settings.ends for beam in candidates]
        going = zip(candidates[:width], ended, strict=False)  # the others are reserves
        finished += [_normalised(beam) for beam, end in going if end]
        finished = sorted(finished, key=lambda beam: -beam.score)[:width]
        if last:
            return list(finished[0].ids)
        pairs = zip(candidates, ended, strict=True)
        running = [beam for beam, end in pairs if not end][:width]
        if len(finished) == width and (settings.early_stopping or _hopeless(running, finished)):
            return list(finished[0].ids)
        caches.select(caches, [beam.parent for beam in running])
        logits = model.next_logits([[beam.ids[-1]] for beam in running], caches)


def _candidates(
    logits: Floats, running: Sequence[_Beam], prompt: Sequence[int], settings: GenerationSettings
) -> list[_Beam]:
    """Return the best continuations of the running texts, best first.

    Each ending token can occur once per beam, so enough candidates are taken for `beams` texts that
    continue.
    """
    scores = sampling.log_softmax(logits)
    for row, beam in zip(scores, running, strict=True):
        sampling.forbid_repeats(row, [*prompt, *beam.ids], settings.no_repeat_ngram)
        np.add(row, beam.score, out=row)
    flat = scores.reshape(-1)
    count = min(max(2, 1 + len(settings.ends)) * settings.beams, len(flat))
    top = np.argpartition(-flat, count - 1)[:count]
    top = top[np.argsort(-flat[top], kind="stable")]
    candidates = []
    for index in top:
        parent, token = divmod(int(index), scores.shape[1])
        candidates.append(_Beam(flat[index], (*running[parent].ids, token), parent))
    return candidates


def _normalised(beam: _Beam) -> _Beam:
    return beam._replace(score=np.float32(beam.score / np.float32(len(beam.ids))))


def _hopeless(running: Sequence[_Beam], finished: Sequence[_Beam]) -> bool:
    """Return whether no running text, if it ended now, would beat the worst finished one."""
    return not _normalised(running[0]).score > finished[-1].score

"""The implementation of `cgpt-convert generate`, separate because it imports NumPy."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any

import click

from cgpt_convert.cli.notes import note
from cgpt_convert.core.text import counted, printable
from cgpt_convert.inference.generate.generation_settings import GenerationSettings, check
from cgpt_convert.inference.generate.request import read_request
from cgpt_convert.inference.generate.stream import Continuation, continued
from cgpt_convert.inference.load import ends
from cgpt_convert.inference.model import Model
from cgpt_convert.inference.text_codec import Encoder, find
from cgpt_convert.targets.tokenizer.bpe import Tokenizer


class GenerationRun:
    """A model, its tokenizer, and the prompts to continue."""

    def __init__(self, model: Model, jobs: int, start: float) -> None:
        self._model, self._jobs, self._start = model, jobs, start
        self._tokenizer: Tokenizer | None = None
        self._encoder: Encoder | None = None
        self._prompts: list[list[int]] = []
        self._settings = GenerationSettings(1)
        self._load = 0.0

    def read_tokenizer(self, folder: str | None) -> None:
        """Read the tokenizer in `folder`, or the one in or next to the model."""
        model = self._model
        self._tokenizer = find(model.source.checkpoint, folder, model.hyper.vocab_size)
        self._encoder = Encoder(self._tokenizer)

    def encoded(self, text: str) -> list[int]:
        """Return the token IDs of a prompt."""
        assert self._encoder
        return self._encoder.encode(text)

    def prepare(self, prompts: list[list[int]], settings: GenerationSettings) -> None:
        """Check the request, then read the weights."""
        self._prompts = prompts
        self._settings = settings._replace(ends=ends(self._model.source, self._tokenizer))
        for prompt in prompts:
            check(self._model, prompt, self._settings)
        self._model.load(self._jobs)
        self._load = perf_counter() - self._start

    def answers(self, path: str, folder: str | None) -> list[str]:
        """Return the texts for a request file."""
        request = read_request(path)
        self.read_tokenizer(folder)
        self.prepare([self.encoded(text) for text in request.prompts], request.settings)
        answers = []
        for text, prompt in zip(request.prompts, self._prompts, strict=True):
            continuation = continued(self._model, prompt, self._settings, self._tokenizer)
            answers.append(text * request.full_text + (continuation.text or ""))
        return answers

    def result(self, prompt: str | None, stops: tuple[str, ...]) -> dict[str, Any]:
        """Return the result for `--json`; docs/reference/json.md lists the keys."""
        (ids,) = self._prompts
        continuation = continued(self._model, ids, self._settings, self._tokenizer, stops)
        return {
            "prompt": prompt,
            "text": None
            if prompt is None or continuation.text is None
            else prompt + continuation.text,
            "ids": [*ids, *continuation.new_ids],
            "new_ids": continuation.new_ids,
            "ended": continuation.ended,
            "seconds": {"load": self._load, "first": continuation.first, "rest": continuation.rest},
            "tokens_per_second": continuation.tokens_per_second,
        }

    def stream(self, prompt: str | None, stops: tuple[str, ...]) -> None:
        """Print the prompt and its continuation as it is generated; IDs if there is no text."""
        (ids,) = self._prompts
        shown = [",".join(map(str, ids)) if prompt is None else prompt]

        def show(text: str) -> None:
            _show("".join(shown) + text)
            shown.clear()  # with the first text, until which progress is shown

        continuation = continued(
            self._model, ids, self._settings, self._tokenizer, stops, show=show
        )
        show("\n")
        _tell(len(ids), continuation, self._load)


def _show(text: str) -> None:
    """Print text immediately. On a terminal, control characters are escaped."""
    if sys.stdout.isatty():
        text = "".join(c if c in "\n\t" else printable(c) for c in text)
    click.echo(text, nl=False)


def _tell(prompt: int, continuation: Continuation, load: float) -> None:
    """Print the timing on standard error."""
    rate, count = continuation.tokens_per_second, len(continuation.new_ids)
    speed = f", {rate:.1f} tokens/s" if rate else ""
    note(
        f"{counted(count, 'new token')} after a prompt of {counted(prompt, 'token')}{speed}; "
        f"{load:.2f} s to read the weights, {continuation.first:.2f} s to the first token"
    )

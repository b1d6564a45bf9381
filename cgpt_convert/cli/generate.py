"""`cgpt-convert generate`."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any

import click

from cgpt_convert.cli import options
from cgpt_convert.cli.table import counted
from cgpt_convert.exports.tokenizer import Tokenizer
from cgpt_convert.inert import printable
from cgpt_convert.models.continuation import Continuation, continued
from cgpt_convert.models.model import Model
from cgpt_convert.models.request import read_request
from cgpt_convert.models.sampling import Warp
from cgpt_convert.models.settings import Settings, check
from cgpt_convert.models.source import ends
from cgpt_convert.models.text import Encoder, find
from cgpt_convert.opening import open_checkpoint
from cgpt_convert.output.crew import cores


class _Ids(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """Token ids such as 464,2068,7586."""

    name = "ids"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        words = str(value).replace(",", " ").split()
        if not words or not all(word.isascii() and word.isdigit() for word in words):
            self.fail(f"{value!r} are no token ids such as 464,2068", param, ctx)
        return [int(word) for word in words]


_POSITIVE = click.IntRange(min=1)


@click.command("generate")
@options.source
@click.argument("prompt", required=False)
@click.option("--ids", type=_Ids(), help="The prompt as token ids; ids come out, too.")
@click.option("--request", metavar="FILE", help="Prompts and parameters as hosted endpoints take.")
@click.option("--max-new-tokens", type=_POSITIVE, default=50, show_default=True, metavar="N")
@click.option(
    "--no-repeat-ngram", type=_POSITIVE, metavar="N", help="No N tokens in a row occur twice."
)
@click.option("--beams", type=_POSITIVE, default=1, metavar="N", help="Search with N beams.")
@click.option("--early-stopping", is_flag=True, help="End when N beams have ended.")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), help="Sample, at that.")
@click.option("--top-k", type=_POSITIVE, help="Sample of the likeliest K tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample of the likeliest tokens that together have probability P.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Sample, and the same each time.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before TEXT (repeatable).")
@click.option("--tokenizer", metavar="DIR", help="Where the tokenizer is.")
@options.engine
@options.heads
@options.activation
@options.mapping
@options.jobs
@options.as_json
def command(
    source: str,
    prompt: str | None,
    ids: list[int] | None,
    request: str | None,
    max_new_tokens: int,
    no_repeat_ngram: int | None,
    beams: int,
    early_stopping: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    tokenizer: str | None,
    engine: str,
    heads: int | None,
    activation: str | None,
    mapping: str | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Continue PROMPT with the model in SOURCE, as text that appears as it comes.

    The likeliest token each time, unless an option asks for beams or for sampling.
    """
    if sum(given is not None for given in (prompt, ids, request)) != 1:
        raise click.UsageError("give one of PROMPT, --ids and --request")
    if early_stopping and beams == 1:
        raise click.UsageError("--early-stopping is of --beams")
    samples = any(given is not None for given in (temperature, top_k, top_p, seed))
    warp = Warp(temperature or 1.0, top_k or 0, top_p or 1.0) if samples else None
    settings = Settings(
        max_new_tokens,
        no_repeat_ngram=no_repeat_ngram or 0,
        warp=warp,
        seed=seed,
        beams=beams,
        early_stopping=early_stopping,
    )
    start = perf_counter()
    model = Model(
        open_checkpoint(source, mapping), engine, heads=heads, activation=activation, resident=True
    )
    for line in model.source.lines:
        click.echo(f"warning: {printable(line)}", err=True)
    run = _Run(model, jobs, start)
    if request is not None:
        options.print_json(run.answers(request, tokenizer))
        return
    if ids is None:
        run.read_tokenizer(tokenizer)
    run.prepare([run.encoded(prompt) if prompt is not None else ids or []], settings)
    if as_json:
        options.print_json(run.result(prompt, stop))
    else:
        run.stream(prompt, stop)


class _Run:
    """A model, its tokenizer, and the prompts that it is to continue."""

    def __init__(self, model: Model, jobs: int, start: float) -> None:
        self._model, self._jobs, self._start = model, jobs, start
        self._tokenizer: Tokenizer | None = None
        self._encoder: Encoder | None = None
        self._prompts: list[list[int]] = []
        self._settings = Settings(1)
        self._load = 0.0

    def read_tokenizer(self, folder: str | None) -> None:
        """Find it, in `folder` or beside the model."""
        model = self._model
        self._tokenizer = find(model.source.checkpoint, folder, model.hyper.vocab_size)
        self._encoder = Encoder(self._tokenizer)

    def encoded(self, text: str) -> list[int]:
        """The ids of a prompt."""
        assert self._encoder
        return self._encoder.encode(text)

    def prepare(self, prompts: list[list[int]], settings: Settings) -> None:
        """Check all that is asked for, then read the weights."""
        self._prompts = prompts
        self._settings = settings._replace(ends=ends(self._model.source, self._tokenizer))
        for prompt in prompts:
            check(self._model, prompt, self._settings)
        self._model.load(self._jobs or cores())
        self._load = perf_counter() - self._start

    def answers(self, path: str, folder: str | None) -> list[str]:
        """The texts that a request asks for."""
        request = read_request(path)
        self.read_tokenizer(folder)
        self.prepare([self.encoded(text) for text in request.prompts], request.settings)
        answers = []
        for text, prompt in zip(request.prompts, self._prompts, strict=True):
            found = continued(self._model, prompt, self._settings, self._tokenizer)
            answers.append(text * request.full_text + (found.text or ""))
        return answers

    def result(self, prompt: str | None, stops: tuple[str, ...]) -> dict[str, Any]:
        """What `--json` prints; docs/json.md has the keys."""
        (ids,) = self._prompts
        found = continued(self._model, ids, self._settings, self._tokenizer, stops)
        return {
            "source": self._model.path,
            "prompt": prompt,
            "text": None if prompt is None or found.text is None else prompt + found.text,
            "ids": [*ids, *found.new_ids],
            "new_ids": found.new_ids,
            "ended": found.ended,
            "seconds": {"load": self._load, "first": found.first, "rest": found.rest},
            "tokens_per_second": found.tokens_per_second,
        }

    def stream(self, prompt: str | None, stops: tuple[str, ...]) -> None:
        """Print the prompt and then its continuation, as it comes; without text, the ids."""
        (ids,) = self._prompts
        _show(",".join(map(str, ids)) if prompt is None else prompt)
        found = continued(self._model, ids, self._settings, self._tokenizer, stops, show=_show)
        click.echo()
        _tell(len(ids), found, self._load)


def _show(text: str) -> None:
    """Print it now. A terminal is given nothing that it would obey."""
    if sys.stdout.isatty():
        text = "".join(c if c in "\n\t" else printable(c) for c in text)
    click.echo(text, nl=False)


def _tell(prompt: int, found: Continuation, load: float) -> None:
    """Say on standard error how long it took."""
    rate, count = found.tokens_per_second, len(found.new_ids)
    speed = f", {rate:.1f} tokens/s" if rate else ""
    click.echo(
        f"{counted(count, 'new token')} after {counted(prompt, 'token')}{speed}; weights read in "
        f"{load:.2f} s, the first token {found.first:.2f} s later",
        err=True,
    )

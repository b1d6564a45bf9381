"""`cgpt-convert generate`."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from cgpt_convert.cli import options
from cgpt_convert.cli.compute_options import ComputeOptions, computing
from cgpt_convert.core.threads import cores
from cgpt_convert.formats.open import open_checkpoint

if TYPE_CHECKING:
    from cgpt_convert.inference.generate.generation_settings import GenerationSettings

_POSITIVE = click.IntRange(min=1)


@click.command("generate")
@options.source
@click.argument("prompt", required=False)
@click.option(
    "--ids", type=options.TokenIds(), help="Prompt as token IDs; the output is token IDs as well."
)
@click.option(
    "--request",
    metavar="FILE",
    help="JSON file of prompts and parameters, as inference endpoints take.",
)
@click.option(
    "--max-new-tokens",
    type=_POSITIVE,
    default=50,
    show_default=True,
    metavar="N",
    help="Largest number of tokens to generate.",
)
@click.option(
    "--no-repeat-ngram", type=_POSITIVE, metavar="N", help="Avoid repeating any N tokens in a row."
)
@click.option(
    "--beams",
    type=_POSITIVE,
    default=1,
    show_default=True,
    metavar="N",
    help="Number of beams; more than 1 turns beam search on.",
)
@click.option(
    "--early-stopping",
    is_flag=True,
    help="End beam search when N texts are complete, where N is --beams.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    metavar="T",
    help="Sampling temperature (turns sampling on).",
)
@click.option("--top-k", type=_POSITIVE, metavar="K", help="Sample from the K most likely tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="P",
    help="Sample from the most likely tokens that together have probability P.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Random seed (turns sampling on; same seed, same text).",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before TEXT (repeatable).")
@options.tokenizer
@computing
@options.mapping
@options.jobs
@options.as_json
def command(
    source: str,
    prompt: str | None,
    ids: list[int] | None,
    request: str | None,
    stop: tuple[str, ...],
    tokenizer: str | None,
    computing: ComputeOptions,
    mapping: str | None,
    jobs: int,
    as_json: bool,
    **how: Any,
) -> None:
    """Generate text from PROMPT with the model in SOURCE, streamed as it is produced.

    The most likely token is chosen each time, unless an option turns on sampling or beam search.
    """
    if sum(given is not None for given in (prompt, ids, request)) != 1:
        raise click.UsageError("pass exactly one of PROMPT, --ids and --request")
    start = perf_counter()
    settings = _settings(**how)
    jobs = jobs or cores()
    from cgpt_convert.cli.run_generation import GenerationRun

    xp = computing.backend(jobs)
    model = computing.model(open_checkpoint(source, mapping), xp, resident=True)
    run = GenerationRun(model, jobs, start)
    if request is not None:
        options.print_json(run.answers(request, tokenizer))
        return
    if ids is None:
        run.read_tokenizer(tokenizer)
    run.prepare([run.encoded(prompt) if prompt is not None else ids or []], settings)
    if as_json:
        options.print_json({"source": source, **run.result(prompt, stop)})
    else:
        run.stream(prompt, stop)


def _settings(
    *,
    max_new_tokens: int,
    no_repeat_ngram: int | None,
    beams: int,
    early_stopping: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
) -> GenerationSettings:
    if early_stopping and beams == 1:
        raise click.UsageError("--early-stopping requires --beams")
    from cgpt_convert.inference.generate.generation_settings import GenerationSettings
    from cgpt_convert.inference.generate.sampling import SamplingOptions

    samples = {temperature, top_k, top_p, seed} != {None}
    return GenerationSettings(
        max_new_tokens,
        no_repeat_ngram=no_repeat_ngram or 0,
        warp=SamplingOptions(temperature or 1.0, top_k or 0, top_p or 1.0) if samples else None,
        seed=seed,
        beams=beams,
        early_stopping=early_stopping,
    )

"""`cgpt-convert eval`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from cgpt_convert.cli import options
from cgpt_convert.cli.compute_options import ComputeOptions, computing
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import wrapped
from cgpt_convert.core.text import counted, printable
from cgpt_convert.core.threads import worker_count
from cgpt_convert.formats.open import open_checkpoint

if TYPE_CHECKING:
    from cgpt_convert.inference.evaluate.cross_entropy import Loss
    from cgpt_convert.inference.evaluate.divergence import Divergence
    from cgpt_convert.inference.evaluate.text_windows import TokenWindow, WindowedText
    from cgpt_convert.inference.model import Model


@click.command("eval")
@options.source
@click.option(
    "--text", "path", required=True, metavar="FILE", type=options.PATH, help="Text file, UTF-8."
)
@click.option(
    "--against", metavar="OTHER", help="Compare the predictions of OTHER with those of SOURCE."
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of tokens in a window.  [default: all positions of the model]",
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    metavar="N",
    help="New tokens per window; the rest is context.  [default: the whole window]",
)
@options.tokenizer
@computing
@options.mapping
@options.jobs
@options.as_json
def command(
    source: str,
    path: str,
    against: str | None,
    context: int | None,
    stride: int | None,
    tokenizer: str | None,
    computing: ComputeOptions,
    mapping: str | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Measure how well SOURCE predicts a text; with --against, how far OTHER differs from it.

    The text is split into windows as in lm-eval's rolling loglikelihood: each token is predicted
    once, the first one from the end-of-text token.
    """
    from cgpt_convert.inference.evaluate.text_windows import check_alike, read_passage

    xp = computing.backend(worker_count(jobs))
    model = computing.model(open_checkpoint(source, mapping), xp)
    other = computing.model(open_checkpoint(against, mapping), xp) if against else None
    if other:
        check_alike(model, other)
    text = options.read_text(path)
    passage = read_passage(model, text, tokenizer, context, stride)
    result = {"source": source, "text": path, **_told(model, text, passage)}
    if other is None:
        result |= _alone(model, passage, result["nbytes"])
    else:
        result |= _both(model, other, passage, result["nbytes"])
    if as_json:
        options.print_json(result)
    else:
        _print(result)


def _told(model: Model, text: str, passage: WindowedText) -> dict[str, Any]:
    recognised = model.source.recognised
    known, shaped = recognised.identity, recognised.shape_of
    return {
        "nbytes": len(text.encode()),
        "tokens": passage.tokens,
        "context": passage.context,
        "stride": passage.stride,
        "windows": passage.window_count,
        "model": known.name if known else None,
        "shape_of": shaped.name if shaped else None,
        "pile_loss": known.pile_loss if known else None,
    }


def _alone(model: Model, passage: WindowedText, nbytes: int) -> dict[str, Any]:
    from cgpt_convert.inference.evaluate.cross_entropy import evaluate

    with progress("evaluating", passage.tokens, unit=" tokens") as advance:
        windows = _telling(passage.windows(), advance)
        loss = evaluate(model, passage.sequence, windows, model.hyper.vocab_size)
    return {**_loss(loss, nbytes), "against": None}


def _both(model: Model, other: Model, passage: WindowedText, nbytes: int) -> dict[str, Any]:
    from cgpt_convert.inference.evaluate.divergence import diverge

    with progress("evaluating", passage.tokens, unit=" tokens") as advance:
        windows = _telling(passage.windows(), advance)
        divergence = diverge(model, other, passage.sequence, windows, model.hyper.vocab_size)
    against = {"source": other.path, **_loss(divergence.other, nbytes), **_divergence(divergence)}
    return {**_loss(divergence.base, nbytes), "against": against}


def _telling(
    windows: Iterable[TokenWindow], advance: Callable[[int], object]
) -> Iterator[TokenWindow]:
    for window in windows:
        yield window
        advance(window.scored)


def _loss(loss: Loss, nbytes: int) -> dict[str, Any]:
    return {
        "cross_entropy": _finite(loss.cross_entropy),
        "perplexity": _finite(loss.perplexity),
        "bits_per_byte": _finite(loss.bits_per_byte(nbytes)),
        "top_right": loss.top / loss.tokens,
    }


def _divergence(divergence: Divergence) -> dict[str, Any]:
    return {
        "perplexity_ratio": _finite(divergence.perplexity_ratio),
        "kl_mean": _finite(divergence.kl_mean),
        "kl_error": _finite(divergence.kl_error),
        "kl_p99": _finite(divergence.kl_percentile(99)),
        "kl_max": _finite(divergence.kl_max),
        "top_agreement": divergence.top_agreement,
        "p_change_rms": _finite(divergence.p_change_rms),
    }


def _finite(value: float) -> float | None:
    """Return None for a value that is not finite, since JSON has no such numbers."""
    return value if math.isfinite(value) else None


def _print(result: dict[str, Any]) -> None:
    windows = counted(result["windows"], "window")
    _say(
        f"{printable(result['source'])} on {printable(result['text'])}: "
        f"{counted(result['tokens'], 'token')}, {counted(result['nbytes'], 'byte')}, "
        f"in {windows} of {result['context']:,}"
    )
    _row("cross-entropy", f"{_shown(result['cross_entropy'], '.4f')} nats per token")
    if result["shape_of"] is not None and result["model"] is None:
        _row("", f"(shape of {result['shape_of']}; the model's name is unknown)")
    if result["pile_loss"] is not None:
        _row("", f"(model card of {result['model']}: {result['pile_loss']} on the Pile's test set)")
    _row("perplexity", _shown(result["perplexity"], ".3f"))
    _row("bits per byte", _shown(result["bits_per_byte"], ".4f"))
    _row("top-1 accuracy", f"{result['top_right']:.2%}")
    other = result["against"]
    if other is not None:
        _say(f"\n{printable(other['source'])}, compared with {printable(result['source'])}:")
        ratio = _shown(other["perplexity_ratio"], ".5f")
        _row("perplexity", f"{_shown(other['perplexity'], '.3f')} (x {ratio})")
        mean, error = _shown(other["kl_mean"], ".3g"), _shown(other["kl_error"], ".1g")
        _row("KL divergence, mean", f"{mean} +- {error} nats per token")
        _row("  99th percentile", _shown(other["kl_p99"], ".3g"))
        _row("  maximum", _shown(other["kl_max"], ".3g"))
        _row("same top-1 token", f"{other['top_agreement']:.2%}")
        _row("RMS change of p(correct)", _shown(other["p_change_rms"], ".3%"))


def _shown(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _row(name: str, value: str) -> None:
    _say(f"  {name:<24} {value}")


def _say(line: str) -> None:
    click.echo(wrapped(line, 4))

"""The options of commands that run models, and the model made from them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import click

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.text import printable

if TYPE_CHECKING:
    from cgpt_convert.inference.backend import Backend
    from cgpt_convert.inference.model import Model

F = TypeVar("F", bound=Callable[..., Any])


class ComputeOptions(NamedTuple):
    """The values of the options."""

    engine: str
    heads: int | None
    activation: str | None

    def backend(self, threads: int) -> Backend:
        """Return the compute backend with `threads` threads."""
        from cgpt_convert.inference.backend import backend

        return backend(self.engine, threads)

    def model(self, checkpoint: Checkpoint, xp: Backend, *, resident: bool = False) -> Model:
        """Return the model in `checkpoint`, and warn about contradictions to its config.json."""
        from cgpt_convert.inference.model import Model

        model = Model(
            checkpoint, xp, heads=self.heads, activation=self.activation, resident=resident
        )
        warn(model)
        return model


def warn(model: Model) -> None:
    """Print the contradictions between the model's configuration and its tensors."""
    for line in model.source.lines:
        click.echo(f"warning: {printable(line)}", err=True)


def computing(command: F) -> F:
    """Add --engine, --heads and --activation, passed to the command as `computing`."""

    @click.option(
        "--engine",
        type=click.Choice(["numpy", "torch"]),
        default="numpy",
        show_default=True,
        help="Compute backend; torch uses a GPU if available.",
    )
    @click.option(
        "--heads",
        type=click.IntRange(min=1),
        metavar="N",
        help="Number of attention heads.  [default: from config.json]",
    )
    @click.option(
        "--activation",
        metavar="NAME",
        help="Activation function, such as gelu or gelu_new.  [default: from config.json]",
    )
    @functools.wraps(command)
    def wrapped(engine: str, heads: int | None, activation: str | None, **given: Any) -> Any:
        return command(computing=ComputeOptions(engine, heads, activation), **given)

    return cast("F", wrapped)

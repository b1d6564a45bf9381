"""`cgpt-convert models`."""

from __future__ import annotations

from typing import Any

import click

from cgpt_convert.architectures.known_models import KnownModel, models
from cgpt_convert.cli import options
from cgpt_convert.cli.table import size, table

_HEADER = (
    "name",
    "layers",
    "width",
    "heads",
    "d_head",
    "d_ffn",
    "parameters",
    "published",
    "tokens",
    "FLOPs",
    "Pile loss",
    "float32",
    "files",
    "mapping",
)
_NUMBERS = _HEADER[1:-1]
_NOTE = """
parameters: exact number, tied weights counted once; published: as rounded by the authors
tokens, FLOPs: used for training; Pile loss: nats per token on the Pile's test set. All three are
  from the model card; - means not published. --json also has the paper's losses, which may differ.
float32: size of the parameters; files: size of the .bin files in the vendor's layout, with masks,
  without the archive's overhead (about 300 bytes per storage). Both are computed.
mapping: yes if --mapping NAME can read a folder of raw numbered files of this model"""


@click.command("models")
@options.as_json
def command(as_json: bool) -> None:
    """List the known models, with their sizes and published figures."""
    if as_json:
        options.print_json({"models": [as_data(model) for model in models()]})
        return
    for line in table(_HEADER, [_cells(model) for model in models()], right=_NUMBERS):
        click.echo(line)
    click.echo(_NOTE)


def as_data(model: KnownModel) -> dict[str, Any]:
    """Return the model for `--json`: sizes as in config.json, bytes, and null if unknown."""
    return {
        "name": model.name,
        "title": model.title,
        "family": model.family,
        "architecture": model.architecture,
        **model.sizes,
        "n_head": model.n_head,
        "d_head": model.d_head,
        "activation_function": model.activation,
        "layer_norm_epsilon": model.layer_norm_epsilon,
        "parameters": model.parameters,
        "published": model.published,
        "training_tokens": model.training_tokens,
        "training_flops": model.training_flops,
        "pile_loss": model.pile_loss,
        "pile_loss_paper": model.pile_loss_paper,
        "zero_shot": dict(model.zero_shot),
        "five_shot": dict(model.five_shot),
        "training": dict(model.training),
        "float32_nbytes": model.float32_nbytes,
        "file_nbytes": model.file_nbytes,
        "mapping": model.storages is not None,
    }


def _cells(model: KnownModel) -> list[str]:
    sizes = model.sizes
    tokens, flops, loss = model.training_tokens, model.training_flops, model.pile_loss
    return [
        model.name,
        f"{sizes['n_layer']}",
        f"{sizes['n_embd']}",
        f"{model.n_head}",
        f"{model.d_head}",
        f"{sizes['n_inner']}",
        f"{model.parameters:,}",
        model.published or "-",
        _power(tokens, 2),
        _power(flops, 1),
        f"{loss:.3f}" if loss is not None else "-",
        size(model.float32_nbytes),
        size(model.file_nbytes) if model.file_nbytes else "-",
        "yes" if model.storages is not None else "-",
    ]


def _power(value: float | None, digits: int) -> str:
    return f"{value:.{digits}e}".replace("e+0", "e").replace("e+", "e") if value else "-"

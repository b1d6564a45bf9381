"""`cgpt-convert digest`."""

from __future__ import annotations

from typing import Any

import click

from cgpt_convert.cli import options
from cgpt_convert.cli.notes import tell_code
from cgpt_convert.cli.progress import progress
from cgpt_convert.inert import printable
from cgpt_convert.opening import open_checkpoint
from cgpt_convert.proof.canonical import Weights, weights
from cgpt_convert.proof.digests import ALGORITHM, Digested, digested
from cgpt_convert.select import Wish


@click.command("digest")
@options.source
@click.option("--tensors", is_flag=True, help="Show the digest of each tensor, too.")
@options.wish
@options.mapping
@options.jobs
@options.as_json
def command(
    source: str,
    tensors: bool,
    wish: Wish,
    mapping: str | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Print one digest for the weights of SOURCE, whatever the container.

    The first line is the digest of all tensors under their names. The second, for a known
    architecture, is the model's: it is the same under other names of the same tensors, without
    computed buffers, tied or not.
    """
    checkpoint = open_checkpoint(source, mapping)
    tell_code(checkpoint)
    chosen = weights(checkpoint, wish)
    with progress("digest", sum(t.nbytes for t in chosen.tensors.values())) as advance:
        found = digested(chosen, jobs, advance)
    if as_json:
        options.print_json(_result(chosen, found))
        return
    click.echo(ALGORITHM + found.whole)
    if found.model:
        click.echo(f"{ALGORITHM}{found.model}  model {chosen.architecture}")
    elif chosen.architecture:
        count = len(chosen.misfits)
        click.echo(f"no model digest: {count} differences from {chosen.architecture}", err=True)
    for name, digest in found.tensors.items() if tensors else ():
        click.echo(f"{digest}  {printable(name)}")


def _result(chosen: Weights, found: Digested) -> dict[str, Any]:
    """What `--json` prints; docs/json.md has the keys."""
    return {
        "source": chosen.path,
        "digest": ALGORITHM + found.whole,
        "model": ALGORITHM + found.model if found.model else None,
        "architecture": chosen.architecture or None,
        "tensors": [
            {
                "name": name,
                "dtype": tensor.dtype.name,
                "shape": list(tensor.shape),
                "sha256": found.tensors[name],
            }
            for name, tensor in chosen.tensors.items()
        ],
    }

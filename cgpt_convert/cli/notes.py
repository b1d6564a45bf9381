"""Notes on standard error about code references and other weight files."""

from __future__ import annotations

import click

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.cli.progress import display
from cgpt_convert.cli.table import counted
from cgpt_convert.core.text import printable
from cgpt_convert.pickles.torch_calls.rebuild import KNOWN

_SHOWN = 5


def note(text: str) -> None:
    """Print a note on standard error, unless `--quiet` is given."""
    if not display.quiet:
        display.clear()
        click.echo(text, err=True)


def tell_beside(checkpoint: Checkpoint, path: str, verb: str = "compared") -> None:
    """Print a note for each other weight file in the folder, and for other unchecked content."""
    from cgpt_convert.verification.check_extras import not_compared, of_source

    for check in (*of_source(checkpoint, path, verb), *not_compared(checkpoint, path, verb)):
        note(f"note: {printable(path)}: {check.detail}")


def tell_code(*checkpoints: Checkpoint, level: str = "note") -> None:
    """Print a line for each checkpoint that references names that weight files do not need."""
    for checkpoint in checkpoints:
        if KNOWN.issuperset(checkpoint.globals):  # as in most files, for which less is imported
            continue
        from cgpt_convert.scanning.allowlist import Allowlist
        from cgpt_convert.verification.check_extras import foreign

        names = foreign(checkpoint, Allowlist())
        if names:
            shown = ", ".join(map(printable, names[:_SHOWN]))
            if len(names) > _SHOWN:
                shown += f" and {counted(len(names) - _SHOWN, 'more name')}"
            message = (
                f"the pickle references other packages' classes (not loaded): {shown}; run scan "
                "for details"
            )
            line = f"{level}: {printable(checkpoint.path)}: {message}"
            if level == "note":
                note(line)
            else:
                click.echo(line, err=True)

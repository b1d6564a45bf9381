"""The implementation of `verify --logits`, separate because it imports NumPy."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import click

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.cli import options, style
from cgpt_convert.cli.compute_options import ComputeOptions, warn
from cgpt_convert.cli.progress import progress
from cgpt_convert.cli.table import table, wrapped
from cgpt_convert.core.checks import FAILED, NOTE, Check
from cgpt_convert.core.errors import CgptError
from cgpt_convert.core.text import counted
from cgpt_convert.inference import compare
from cgpt_convert.inference.compare import Comparison, compare_models, counterpart


class LogitsOptions(NamedTuple):
    """The options that require `--logits`, as given."""

    tokens: list[int] | None
    text: str | None
    tokenizer: str | None
    tolerance: float | None


class LogitsCheck:
    """The source's model and its checked tokens. Nothing is computed before `compare`."""

    def __init__(
        self, source: Checkpoint, how: LogitsOptions, computing: ComputeOptions, jobs: int
    ) -> None:
        self._how = how
        self._model = computing.model(source, computing.backend(jobs))
        self._ids = self._tokens()
        self._model.checked([self._ids])
        self.found: Comparison | None = None

    def compare(self, target: Checkpoint, path: str, *, differs: bool) -> list[Check]:
        """Return the checks of the target opened from `path`, and store the result in `comparison`.

        If the target `differs` so that it cannot be computed, the result is a note, since the
        differences are already reported.
        """
        model = self._model
        try:
            other = counterpart(model, target)
        except CgptError as error:
            if not differs:
                raise
            return [Check("logits", NOTE, f"not compared: {error.message}", path)]
        warn(other)
        with progress("comparing", model.hyper.n_layer + 1, unit=" states") as advance:
            comparison = compare_models(model, other, self._ids, self._how.tolerance, advance)
        self.found = comparison
        return comparison.checks(path)

    def as_json(self) -> dict[str, Any] | None:
        """Return `comparison` for `--json`; docs/reference/json.md lists the keys."""
        comparison = self.found
        return comparison and {
            "ids": self._ids,
            "dtype": comparison.dtype,
            "tolerance": comparison.tolerance,
            "first": comparison.first.name if comparison.first else None,
            "states": [
                {"name": name, "max_difference": _finite(most), "nmse": _finite(nmse)}
                for name, most, nmse in comparison.differences
            ],
            "top_agreement": comparison.agreement,
        }

    def print(self) -> None:
        """Print `comparison` as a table."""
        comparison = self.found
        if comparison is None:
            return
        of = "" if self._how.tolerance is not None else f"{comparison.dtype} "
        tokens = counted(comparison.tokens, "token")
        tolerance = f"{of}tolerance: NMSE {comparison.tolerance:g}"
        click.echo(wrapped(f"{tokens}, both models ({tolerance}):", 4))
        rows = [(d.name, f"{d.greatest:.3g}", f"{d.nmse:.3g}") for d in comparison.differences]
        header = ("state", "max difference", "NMSE")
        for line in table(header, rows, right=header[1:]):
            click.echo(f"  {line}")
        first = ""
        if comparison.first:
            failed = style.verdict("failed", FAILED)
            first = f"{failed}: the first difference is in {comparison.first.name}; "
        click.echo(wrapped(first + comparison.agreeing, 4))

    def _tokens(self) -> list[int]:
        how = self._how
        if how.tokens is not None:
            return how.tokens
        if how.text is None:
            return compare.spread(self._model)
        return compare.beginning(self._model, options.read_text(how.text), how.tokenizer)


def _finite(value: float) -> float | None:
    """Return None for a value that is not finite, since JSON has no such numbers."""
    return value if math.isfinite(value) else None

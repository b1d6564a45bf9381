"""`inspect`."""

from __future__ import annotations

from typing import Any

from cgpt_convert.api.arguments import Globs, Source, opened, patterns
from cgpt_convert.core.threads import Progress, no_progress
from cgpt_convert.inspection import (
    add_statistics,
    check_storages_of,
    matching_rows,
    summarise,
    transferred,
)


def inspect(
    source: Source,
    *,
    match: Globs = (),
    stats: bool = False,
    check: bool = False,
    mapping: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Return the output of `inspect --json` as a dict; docs/reference/json.md lists the keys.

    Tensor data is read only with `stats`, which adds statistics to each tensor, and with `check`,
    which compares all recorded checksums.
    """
    checkpoint = opened(source, mapping)
    summary = summarise(checkpoint)
    rows = matching_rows(checkpoint, summary["tensors"], patterns(match))
    if stats:
        add_statistics(checkpoint, rows, progress)
    if check:
        summary["check"] = check_storages_of(checkpoint, progress)
    return summary | {"transfer": transferred(checkpoint), "tensors": rows}

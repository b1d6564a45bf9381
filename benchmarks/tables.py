"""Results as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.promises import MB, OF_CHECKPOINTS, OF_THE_REST, Promise, verdict
from benchmarks.results import MEMORY, Results, Row
from benchmarks.scaling import Growth, numbers
from benchmarks.tasks import COPY


def of_checkpoints(results: Results) -> str:
    """Each promise, and what was measured of it for each size, on a disk and in memory."""
    places = sorted({
        (row.nbytes, key.size, key.file_system == MEMORY)
        for key, row in results.rows.items()
        if key.kind in {"hf", "cs"}
    }, key=lambda place: (place[2], place[0]))  # fmt: skip
    columns = {  # the layouts differ by some bytes
        (size, memory): gigabytes(nbytes) + ", tmpfs" * memory for nbytes, size, memory in places
    }
    lines = []
    for promise in OF_CHECKPOINTS:
        cells = [_cell(promise, results, size, memory=memory) for size, memory in columns]
        if any(cells):
            lines.append([promise.text, *cells])
    return _table(["promise", *columns.values()], lines)


def of_the_rest(results: Results) -> str:
    """The promises that are not of checkpoints, and what was measured of them."""
    lines = []
    for promise in OF_THE_REST:
        size = promise.sizes[0] if promise.sizes else ""
        found = verdict(promise, results, size)
        if found:
            lines.append([promise.text, found.measured, "yes" if found.kept else "**no**"])
    return _table(["promise", "measured", "kept"], lines)


def _cell(promise: Promise, results: Results, size: str, *, memory: bool) -> str:
    found = verdict(promise, results, size, memory=memory)
    if not found:
        return ""
    return found.measured if found.kept else f"**{found.measured}**"


def rows(results: Results, size: str, kind: str, file_system: str = "") -> str:
    """A line for each command, and first one for the copies before all of them."""
    found = [
        row
        for key, row in results.rows.items()
        if (key.size, key.kind) == (size, kind) and file_system in {"", key.file_system}
    ]
    copies = [copy for row in found for copy in row.copies]
    lines = []
    if copies:
        latest = max(row.session for row in found)
        first = found[0]._replace(runs=copies, copies=copies, session=latest)
        lines.append(_line(COPY.name, first, results))
    lines += [_line(row.key.command, row, results) for row in found]
    heads = ["command", "seconds", "runs", "x cp", "user", "system", "peak", "measured"]
    return _table(heads, lines)


def _line(name: str, row: Row, results: Results) -> list[str]:
    spread = f"{row.wall:.3f} ({min(row.walls):.3f}..{max(row.walls):.3f})"
    ratio = f"{row.ratio:.2f}" if row.copies else ""
    cpu = [[run.user for run in row.runs], [run.system for run in row.runs]]
    shown = [f"{statistics.median(each):.2f}" if any(map(sum, cpu)) else "" for each in cpu]
    date = results.sessions[row.session].date
    return [name, spread, str(len(row.runs)), ratio, *shown, f"{row.peak / MB:.0f} MB", date]


def growth(found: Sequence[Growth], noun: str) -> str:
    """A line for each command: by how many there were, seconds and MB; slopes; what one costs."""
    columns = numbers(found)
    lines = []
    for each in found:
        cells = [_seconds_and_memory(each.rows.get(number)) for number in columns]
        seconds, nbytes = each.each
        slopes = f"{each.seconds:.2f}, {each.memory:.2f}"
        slopes = slopes if each.linear else f"**{slopes}**"
        lines.append(
            [each.command, *cells, slopes, f"{seconds * 1e6:,.0f} µs, {nbytes / 1e3:.1f} kB"]
        )
    heads = [f"{number:,} {noun if number > 1 else noun[:-1]}" for number in columns]
    return _table(["command", *heads, "slope", "each"], lines)


def _seconds_and_memory(row: Row | None) -> str:
    return f"{row.wall:.2f} s, {row.peak / MB:.0f} MB" if row else ""


def gigabytes(nbytes: int) -> str:
    """A size in words."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes > MB * 50 else f"{nbytes / MB:.1f} MB"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))

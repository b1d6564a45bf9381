"""The plots: SVG that is the same for the same results, and readable on light and dark ground."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.promises import MB
from benchmarks.results import MEMORY, Results
from benchmarks.scaling import Growth, growths
from benchmarks.tables import gigabytes

_INK = "#010203"  # stands for the reader's own colour of text
_STYLE = (
    "<style>svg{color:#24292f;font-family:sans-serif}"
    "@media(prefers-color-scheme:dark){svg{color:#d0d7de}}</style>"
)
# tab10 of matplotlib but for its grey, of a lightness that white and black ground both bear
_COLOURS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2"]
_LAYOUTS = {"hf": ("contiguous", _COLOURS[0]), "cs": ("transposed", _COLOURS[1])}
_SHORTER = (  # without comments, indentation, the last of many digits, and the fonts' names
    (r"\n *<!--.*?-->", ""),
    (r"\n +", "\n"),
    (r"(\d\.\d)\d+", r"\1"),
    (r" font-family: [^;]*;", ""),
)
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "cgpt-convert",  # else ids are random
    "svg.fonttype": "none",  # text stays text, which is small
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 9,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    ),
    "grid.color": _INK,
    "grid.alpha": 0.2,
    "legend.frameon": False,
}


def ratios(results: Results) -> Figure | None:
    """How many times `cp` each command takes, a panel for each size and file system."""
    rows = [row for key, row in results.rows.items() if row.copies and key.kind in _LAYOUTS]
    if not rows:
        return None
    panels: dict[tuple[bool, str], int] = {}
    for row in sorted(rows, key=lambda row: row.nbytes):
        panels.setdefault((row.key.file_system == MEMORY, row.key.size), row.nbytes)
    panels = dict(sorted(panels.items(), key=lambda panel: (panel[0][0], panel[1])))
    commands = list(dict.fromkeys(row.key.command for row in rows))
    with mpl.rc_context(_SETTINGS):
        figure = Figure((3.2 + 1.7 * len(panels), 0.8 + 0.28 * len(commands)), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (memory, size) in zip(axes, panels, strict=True):
            axis.set_title(gigabytes(panels[memory, size]) + ", tmpfs" * memory)
            for number, (kind, (label, colour)) in enumerate(_LAYOUTS.items()):
                found = {
                    name: each.ratio
                    for name in commands
                    if (each := results.find(size, kind, name, memory=memory)) and each.copies
                }
                places = [commands.index(name) + 0.4 * number - 0.2 for name in found]
                excess = [ratio - 1 for ratio in found.values()]
                axis.barh(places, excess, 0.38, left=1, color=colour, label=label, clip_on=False)
            _log(axis)
            axis.set_xlabel("seconds, x cp")
        axes[0].set_yticks(range(len(commands)), commands)
        axes[0].invert_yaxis()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def _log(axis: Axes) -> None:
    """A logarithmic scale with a line where `cp` is."""
    axis.set_xscale("log")
    axis.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axis.minorticks_off()
    axis.axvline(1, color=_INK, linewidth=0.8)
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)


def scaling(results: Results) -> Figure | None:
    """Seconds and memory of each command, by the number of tensors and of shards."""
    kinds = {kind: found for kind in ("tensors", "shards") if (found := growths(results, kind))}
    if not kinds:
        return None
    commands = dict.fromkeys(each.command for found in kinds.values() for each in found)
    colours = dict(zip(commands, _COLOURS, strict=False))
    with mpl.rc_context(_SETTINGS):
        figure = Figure((7.6, 3.1 * len(kinds)), layout="constrained")
        for axes, (kind, found) in zip(
            figure.subplots(len(kinds), 2, squeeze=False), kinds.items(), strict=True
        ):
            _curves(axes, kind, found, colours)
    return figure


def _curves(
    axes: Sequence[Axes], kind: str, found: Sequence[Growth], colours: dict[str, str]
) -> None:
    for axis, label in zip(axes, ("seconds", "MB at the peak"), strict=True):
        for each in found:
            values = [
                row.wall if label == "seconds" else row.peak / MB for row in each.rows.values()
            ]
            axis.plot(list(each.rows), values, "o-", markersize=3, color=colours[each.command])
        axis.set(xscale="log", yscale="log", xlabel=kind, ylabel=label)
        least, most = (math.log10(limit) for limit in axis.get_ylim())
        axis.set_ylim(10 ** math.floor(least), 10 ** math.ceil(most))  # two decades have a tick
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_formatter("{x:,g}")
        axis.minorticks_off()
        axis.grid()
    axes[0].legend([each.command for each in found], loc="upper left")


def write(figure: Figure, path: Path) -> Path:
    """Write the figure as SVG; the path."""
    text = io.StringIO()
    with mpl.rc_context(_SETTINGS):
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    drawn = text.getvalue().replace(_INK, "currentColor").replace("<defs>", f"{_STYLE}\n<defs>", 1)
    for pattern, shorter in _SHORTER:
        drawn = re.sub(pattern, shorter, drawn)
    path.write_text(drawn)
    return path

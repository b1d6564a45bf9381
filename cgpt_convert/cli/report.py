"""The text output of `inspect`, from the data that `--json` prints."""

from __future__ import annotations

from typing import Any

import click

from cgpt_convert.cli import style
from cgpt_convert.cli.statistics_columns import COLUMNS, cells_of
from cgpt_convert.cli.table import NO_BREAK, columns, cut, size, table, width, wrapped
from cgpt_convert.core.checks import FAILED, NOTE, PASSED
from cgpt_convert.core.findings import DANGEROUS, FOREIGN
from cgpt_convert.core.text import counted, printable
from cgpt_convert.tensors.shapes import dims

_LONG = 200  # characters shown of a metadata value; --json has all
_LEGIBLE = 16  # columns: a shorter part of a value says nothing
_SHOWN = 12  # other values and foreign names shown; --json has all
_PICKLED = ("PyTorch", "TorchScript")  # prefixes of the kinds of files with a pickle
_SCAN = "`cgpt-convert scan` shows what it would do"
# columns that narrow terminals do not show, the first of them first
_OPTIONAL = ("offset", "storage", "strides", "tied to", "bytes")
_OPTIONAL_STATISTICS = ("zeros", "mean", "std", "shape", "dtype", "distribution")


def show(summary: dict[str, Any], *, tree: bool) -> None:
    """Print the summary made by `inspect`."""
    rows = summary["tensors"]
    _head(summary)
    click.echo()
    if tree:
        from cgpt_convert.cli.tree_view import tree_lines as lines
    else:
        lines = _tensor_lines
    click.echo("\n".join(lines(rows)))
    if len(rows) < _count(summary):
        click.echo(wrapped(f"{len(rows):,} of {counted(_count(summary), 'tensor')} shown"))
    _exotic(summary["exotic"])
    _extras(summary["extras"])
    _others(summary)
    if rows and "stats" in rows[0]:
        _not_finite(rows)
    _check(summary.get("check"))


def _head(summary: dict[str, Any]) -> None:
    root = f", root {summary['root']}/" if summary["root"] else ""
    source = style.bold(printable(summary["source"]))
    click.echo(wrapped(f"{source}: {summary['kind']}{printable(root)}", 4))
    tied = f" ({summary['tied']} tied, counted once)" if summary["tied"] else ""
    types = ", ".join(
        f"{name} {size(row['nbytes'])}".replace(" ", NO_BREAK)
        for name, row in summary["dtypes"].items()
    )
    files = sum(file["nbytes"] for file in summary["files"])
    _model(summary["model"])
    _field("parameters", f"{summary['parameters']:,} in {counted(_count(summary), 'tensor')}{tied}")
    data = f"{size(summary['nbytes'])} of {size(files)}: {types or 'none'}"
    click.echo(wrapped(f"  tensor data  {data}", 15))
    _field("pickle", *_safety(summary))
    if summary["code"]:
        _field(
            "code", f"{len(summary['code'])} TorchScript records (not executed; --json lists them)"
        )
    for finding in summary["findings"]:
        if finding["id"] == FOREIGN.id:
            continue  # listed in the line above
        if finding["id"] == DANGEROUS.id:
            text = f": {finding['detail']} [{finding['id']}]; {_SCAN}"
            _field(style.WARNING, text, FAILED, "dangerous")
            continue
        text = f"{finding['id']} {finding['title']}: {finding['detail']}"
        _field(NOTE if finding["level"] == NOTE else style.WARNING, text)


def _count(summary: dict[str, Any]) -> int:
    """Return the number of all tensors, also of those that --match does not select."""
    return int(sum(row["tensors"] for row in summary["dtypes"].values()) + summary["tied"])


def _model(model: dict[str, Any] | None) -> None:
    """Print the model's name and sizes, and all contradictions to them."""
    if model is None:
        return
    heads = f", {model['n_head']} heads" if model["n_head"] else ""
    width = f", width {model['n_embd']}" if "n_embd" in model else ""
    sizes = f"{model['n_layer']} layers{width}{heads}"
    name = f"{model['architecture']} (size not in the model table)"
    if model["shape_of"]:
        name = model["title"] or f"shape of {model['shape_of']}"
    _field("model", f"{name}: {sizes}")
    if model["wrapper"]:
        _field("wrapper", f"{model['wrapper']} in the names")
    for line in (*model["misfits"], *model["config"]):
        _field("warning", line)
    if model["refusal"]:
        _field("note", model["refusal"])


def _safety(summary: dict[str, Any]) -> tuple[str, str, str]:
    """Return what the pickle names, the level of the verdict, and the verdict itself."""
    if not summary["globals"]:
        pickled = summary["kind"].startswith(_PICKLED)
        none = "no imports" if pickled else "none"
        return ", so loading runs no code", PASSED, none
    if not summary["foreign"]:
        return ": loading needs no code from other packages", PASSED, "weights only"
    names = [printable(name) for name in summary["foreign"]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    is_dangerous = any(finding["id"] == DANGEROUS.id for finding in summary["findings"])
    hint = "" if is_dangerous else f"; {_SCAN}"
    text = f" (not loaded): {', '.join(names[:_SHOWN])}{more}{hint}"
    return text, style.WARNING, "refers to foreign code"


def _field(label: str, text: str, level: str = "", verdict: str = "") -> None:
    """Print a labelled line. A verdict, if any, comes before the text, in the colour of `level`."""
    gap = " " * (13 - len(label))
    if label in (NOTE, style.WARNING):
        label = style.verdict(label, label)
    if verdict:
        verdict = style.verdict(verdict, level)
    click.echo(wrapped(f"  {label}{gap}{verdict}{printable(text)}", 15))


def _tensor_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["no tensors"]
    if "stats" in rows[0]:
        cells = [[*_identity(row), *cells_of(row["stats"])] for row in rows]
        header = ["name", "dtype", "shape", *COLUMNS]
        return table(header, cells, COLUMNS[1:], _OPTIONAL_STATISTICS)
    plain = [row for row in rows if "chunks" not in row and row["file"] != row["storage"]]
    sharded = len({row["file"] for row in plain}) > 1
    header = ["name", "dtype", "shape", "strides", "storage", "offset", "bytes", "tied to"]
    cells = [
        [
            *_identity(row),
            dims(row["strides"]) if row["strides"] is not None else "",
            printable(_storage(row, sharded=sharded)),
            f"{row['offset']}" if row["offset"] is not None else "",
            f"{row['nbytes']:,}",
            printable(row["tied_to"] or ""),
        ]
        for row in rows
    ]
    return table(header, cells, ("offset", "bytes"), _OPTIONAL)


def _identity(row: dict[str, Any]) -> list[str]:
    return [printable(row["name"]), row["dtype"], dims(row["shape"])]


def _storage(row: dict[str, Any], *, sharded: bool) -> str:
    """Return where the tensor is stored in the file; "" if its storage has the same name."""
    chunks = row.get("chunks", ())
    if chunks:
        return f"{len(chunks):,} chunks" if len(chunks) > 1 else str(row["file"])
    if sharded:
        return f"{row['file']}:{row['storage']}"
    return "" if row["storage"] == row["name"] else str(row["storage"])


def _exotic(rows: list[dict[str, Any]]) -> None:
    if rows:
        click.echo(style.bold("\nnot dense:"))
    for row in rows:
        known = f" {row['dtype']} {dims(row['shape'])}" if row["dtype"] else ""
        line = f"  {printable(row['name'])}  {row['kind']}{known}: "
        click.echo(wrapped(line + printable(row["detail"]), 4))


def _extras(extras: dict[str, str]) -> None:
    """Print the tensors outside `state_dict()` with their descriptions."""
    if extras:
        click.echo(style.bold("\nnot in state_dict():"))
    for name, what in list(extras.items())[:_SHOWN]:
        click.echo(wrapped(f"  {printable(name)}: {what}", 4))
    if len(extras) > _SHOWN:
        click.echo(f"  and {len(extras) - _SHOWN} more (--json shows all)")


def _others(summary: dict[str, Any]) -> None:
    pairs = [(row["path"], row["text"]) for row in summary["others"]]
    pairs += [(f"metadata {key}", cut(value, _LONG)) for key, value in summary["metadata"].items()]
    if not pairs:
        return
    click.echo(style.bold("\nother values:"))
    for path, text in pairs[:_SHOWN]:
        click.echo(_fitted(printable(path) or "(top level)", printable(text)))
    if len(pairs) > _SHOWN:
        click.echo(f"  and {len(pairs) - _SHOWN} more (--json shows all)")


def _fitted(name: str, text: str) -> str:
    """Return the name and the text on a line, or two, shortening the text for the terminal."""
    room = width()
    if room is None:
        return f"  {name} = {text}"
    left = room - columns(f"  {name} = ")
    if left < _LEGIBLE and columns(text) > left:
        return f"{wrapped(f'  {name}', 4)}\n    = {cut(text, room - 6)}"
    return f"  {name} = {cut(text, left)}"


def _not_finite(rows: list[dict[str, Any]]) -> None:
    """Print how many tensors contain NaN or Inf, and which."""
    every = [row for row in rows if row["stats"]["nan"] is not None]
    names = [printable(row["name"]) for row in every if row["stats"]["nan"] or row["stats"]["inf"]]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    verb = "contains" if len(names) == 1 else "contain"
    if names:
        line = f"{len(names):,} of {counted(len(every), 'tensor')} {verb} NaN or Inf"
        listed = ", ".join(names[:_SHOWN])
        click.echo("\n" + wrapped(f"{style.verdict(line, FAILED)}: {listed}{more}", 4))
    elif every:
        line = f"no NaN or Inf in {counted(len(every), 'tensor')}"
        click.echo("\n" + wrapped(style.verdict(line, PASSED)))
    if len(every) < len(rows):
        count = counted(len(rows) - len(every), "tensor")
        click.echo(wrapped(f"no statistics for {count}: NumPy does not support the type"))


def _check(check: dict[str, Any] | None) -> None:
    if check is None:
        return
    click.echo()
    if check["damaged"]:
        names = ", ".join(map(printable, check["tensors"])) or "no tensor"
        storages = ", ".join(map(printable, check["damaged"]))
        click.echo(wrapped(f"{style.verdict('damaged:', FAILED)} storages {storages} ({names})"))
    elif check["recorded"]:
        right = style.verdict("checksums:", PASSED)
        click.echo(wrapped(f"{right} all {check['recorded']} match"))
    else:
        click.echo("checksums: none recorded in the file")

"""The text output of `inspect`, from the data that `--json` prints."""

from __future__ import annotations

from typing import Any

import click

from cgpt_convert.cli import style
from cgpt_convert.cli.table import counted, cut, size, table, width, wrapped
from cgpt_convert.core.checks import FAILED, NOTE, PASSED
from cgpt_convert.core.findings import DANGEROUS, FOREIGN
from cgpt_convert.core.text import printable
from cgpt_convert.tensors.shapes import dims

_LONG = 200  # characters shown of a metadata value; --json has all
_SHOWN = 12  # other values and foreign names shown; --json has all
_PICKLED = ("PyTorch", "TorchScript")  # prefixes of the kinds of files with a pickle
_SCAN = "`cgpt-convert scan` shows what it would do"
_NUMBERS = ("offset", "bytes", "min", "max", "mean", "std", "zeros", "nan", "inf")


def show(summary: dict[str, Any], rows: list[dict[str, Any]], *, tree: bool) -> None:
    """Print the summary made by `summarise`, with the tensors in `rows`."""
    _head(summary)
    click.echo()
    if tree:
        from cgpt_convert.cli.tree_view import tree_lines as lines
    else:
        lines = _tensor_lines
    click.echo("\n".join(lines(rows)))
    if len(rows) < len(summary["tensors"]):
        click.echo(wrapped(f"{len(rows):,} of {counted(len(summary['tensors']), 'tensor')} shown"))
    _exotic(summary["exotic"])
    _extras(summary["extras"])
    _others(summary)
    _check(summary.get("check"))


def _head(summary: dict[str, Any]) -> None:
    root = f", root {summary['root']}/" if summary["root"] else ""
    source = style.bold(printable(summary["source"]))
    click.echo(wrapped(f"{source}: {summary['kind']}{printable(root)}"))
    ties = sum(row["tied_to"] is not None for row in summary["tensors"])
    tied = f" ({ties} tied, counted once)" if ties else ""
    types = ", ".join(f"{name} {size(row['nbytes'])}" for name, row in summary["dtypes"].items())
    files = sum(file["nbytes"] for file in summary["files"])
    count = len(summary["tensors"])
    _model(summary["model"])
    _field("parameters", f"{summary['parameters']:,} in {counted(count, 'tensor')}{tied}")
    _field("tensor data", f"{size(summary['nbytes'])} of {size(files)}: {types or 'none'}")
    _field("pickle", *_safety(summary))
    if summary["code"]:
        _field("code", f"{len(summary['code'])} TorchScript records, listed by --json, not run")
    for finding in summary["findings"]:
        if finding["id"] == FOREIGN.id:
            continue  # listed in the line above
        text = f"{finding['id']} {finding['title']}: {finding['detail']}"
        if finding["id"] == DANGEROUS.id:
            text = f"dangerous: {finding['detail']} [{finding['id']}]; {_SCAN}"
        _field("note" if finding["level"] == "note" else "warning", text)


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
        none = "names nothing" if pickled else "none"
        return ", so nothing to run", PASSED, none
    if not summary["foreign"]:
        return ": it names nothing but torch's own data types", PASSED, "weights only"
    names = [printable(name) for name in summary["foreign"]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    is_dangerous = any(finding["id"] == DANGEROUS.id for finding in summary["findings"])
    hint = "" if is_dangerous else f"; {_SCAN}"
    text = f", not loaded here: {', '.join(names[:_SHOWN])}{more}{hint}"
    return text, style.WARNING, "names foreign code"


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
    plain = [row for row in rows if "chunks" not in row and row["file"] != row["storage"]]
    sharded = len({row["file"] for row in plain}) > 1
    header = ["name", "dtype", "shape", "strides", "storage", "offset", "bytes", "tied to"]
    with_stats = any("stats" in row for row in rows)
    if with_stats:
        header = ["name", "dtype", "shape", *_NUMBERS[2:]]
    lines = []
    for row in rows:
        cells = {
            "name": printable(row["name"]),
            "dtype": row["dtype"],
            "shape": dims(row["shape"]),
            "strides": dims(row["strides"]) if row["strides"] is not None else "",
            "storage": printable(_storage(row, sharded=sharded)),
            "offset": f"{row['offset']}" if row["offset"] is not None else "",
            "bytes": f"{row['nbytes']:,}",
            "tied to": printable(row["tied_to"] or ""),
            **{key: _number(value) for key, value in row.get("stats", {}).items()},
        }
        lines.append([cells.get(column, "") for column in header])
    return table(header, lines, right=_NUMBERS)


def _storage(row: dict[str, Any], *, sharded: bool) -> str:
    """Return where the tensor is stored in the file; "" if its storage has the same name."""
    chunks = row.get("chunks", ())
    if chunks:
        return f"{len(chunks):,} chunks" if len(chunks) > 1 else str(row["file"])
    if sharded:
        return f"{row['file']}:{row['storage']}"
    return "" if row["storage"] == row["name"] else str(row["storage"])


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


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
    room = width()
    for path, text in pairs[:_SHOWN]:
        line = f"  {printable(path) or '(the whole)'} = {printable(text)}"
        click.echo(cut(line, room) if room else line)
    if len(pairs) > _SHOWN:
        click.echo(f"  and {len(pairs) - _SHOWN} more (--json shows all)")


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
        click.echo(wrapped(f"{right} all {check['recorded']} storages are as they were written"))
    else:
        click.echo("checksums: the file records none")

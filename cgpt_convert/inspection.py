"""Collect the data that `inspect` shows, ready for JSON. docs/reference/json.md lists the keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cgpt_convert.architectures.hf_config_check import check_config
from cgpt_convert.architectures.recognise import recognise
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.checks import FAILED, NOTE, PASSED, Check
from cgpt_convert.core.threads import Progress, no_progress
from cgpt_convert.pickles.flatten.flatten import foreign
from cgpt_convert.pickles.nodes import text
from cgpt_convert.sources.local import is_file
from cgpt_convert.sources.paths import is_url
from cgpt_convert.targets.hf_view import configuration, undone
from cgpt_convert.tensors.tensor import Tensor


def summarise(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return everything about a checkpoint that is known without reading tensor data."""
    ties = checkpoint.ties
    model, buffers = _model(checkpoint)
    single = [t for name, t in checkpoint.items() if name not in ties]
    return {
        "source": checkpoint.path,
        "kind": checkpoint.kind,
        "root": checkpoint.root or None,
        "files": [
            {"name": os.path.basename(source.name), "nbytes": source.nbytes}
            for source in checkpoint.sources
        ],
        "model": model,
        "parameters": sum(
            t.numel
            for t in single
            if t.stored.kind in "fcq" and t.name not in buffers and t.name not in checkpoint.extras
        ),
        "elements": sum(t.numel for t in single),
        "nbytes": sum(t.nbytes for t in single),
        "dtypes": _by_dtype(single),
        "tied": len(ties),
        "tensors": [tensor_row(t, ties) for t in checkpoint.values()],
        "exotic": [
            {
                "name": e.name,
                "kind": e.kind,
                "dtype": e.dtype or None,
                "shape": list(e.shape) if e.dtype else None,
                "detail": e.detail,
            }
            for e in checkpoint.exotic.values()
        ],
        "extras": checkpoint.extras,
        "others": [{"path": leaf.path, "text": text(leaf.value)} for leaf in checkpoint.others],
        "metadata": checkpoint.metadata,
        "code": checkpoint.code,
        "globals": checkpoint.globals,
        "foreign": foreign(checkpoint.globals),
        "findings": [
            {"id": f.rule.id, "level": f.rule.level, "title": f.rule.title, "detail": f.detail}
            for f in checkpoint.findings
        ],
    }


def checks_of(summary: dict[str, Any]) -> list[Check]:
    """Return the results of `inspect --check`: checksums, and anomalies of the file as notes."""
    file, check = summary["source"], summary["check"]
    checks = [
        Check("checksums", FAILED, f"storage {key} does not match its checksum", file)
        for key in check["damaged"]
    ]
    if not checks:
        storages = f"{check['recorded']:,} of {check['storages']:,} storages"
        checks.append(Check("checksums", PASSED, f"{storages} have a checksum; all match", file))
    for finding in summary["findings"]:
        detail = f"{finding['title']}: {finding['detail']}"
        checks.append(Check("findings", NOTE, detail, file, finding=finding["id"]))
    return checks


def _model(checkpoint: Checkpoint) -> tuple[dict[str, Any] | None, set[str]]:
    """Return the description of a known architecture, or None, and the names of its buffers."""
    config = configuration(checkpoint)
    recognised = recognise(undone(checkpoint), config)
    if recognised is None:
        return None, set()
    known, shaped = recognised.identity, recognised.shape_of
    model = {
        "architecture": recognised.architecture.name,
        "name": known.name if known else None,
        "title": known.title if known else None,
        "shape_of": shaped.title if shaped else None,
        **recognised.sizes,
        "n_head": recognised.n_head,
        "head": recognised.head,
        "conv1d": recognised.conv1d,
        "wrapper": recognised.wrapper or None,
        "misfits": list(recognised.misfits),
        "config": check_config(recognised, config) if config is not None else [],
        "refusal": recognised.refusal or None,
    }
    return model, set(recognised.skipped)


def tensor_row(tensor: Tensor, ties: dict[str, str]) -> dict[str, Any]:
    """Return one row of the tensor table. `offset` is the byte in the file where the view starts.

    It is None for data that has no such position in the file, such as compressed data.
    """
    storage = tensor.storage
    plain = is_file(storage.source)
    row: dict[str, Any] = {
        "name": tensor.name,
        "dtype": tensor.stored.name,
        "shape": list(tensor.shape),
        "strides": None if tensor.is_c_order else list(tensor.strides),
        "file": os.path.basename(storage.source.name),
        "storage": storage.key,
        "offset": storage.offset + tensor.start * tensor.stored.nbytes if plain else None,
        "nbytes": tensor.nbytes,
        "tied_to": ties.get(tensor.name),
    }
    if tensor.quantizer:
        row["quantizer"] = tensor.quantizer
    boxes = getattr(storage.source, "boxes", ())  # `boxes_of`, without its import
    if boxes:
        row["file"] = ", ".join(dict.fromkeys(os.path.basename(box.source.name) for box in boxes))
        row["chunks"] = [
            {
                "file": os.path.basename(box.source.name),
                "offset": box.span[0],
                "nbytes": box.span[1],
                "start": list(box.offsets),
                "shape": list(box.shape),
            }
            for box in boxes
        ]
    if tensor.conj or tensor.neg:
        row["pending"] = "conjugate" if tensor.conj else "negate"
    return row


def _by_dtype(tensors: list[Tensor]) -> dict[str, dict[str, int]]:
    rows: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        row = rows.setdefault(tensor.stored.name, {"tensors": 0, "elements": 0, "nbytes": 0})
        row["tensors"] += 1
        row["elements"] += tensor.numel
        row["nbytes"] += tensor.nbytes
    return dict(sorted(rows.items(), key=lambda item: -item[1]["nbytes"]))


def transferred(checkpoint: Checkpoint) -> dict[str, int] | None:
    """Return what was requested so far over a network; None for local files."""
    if not is_url(checkpoint.path):
        return None
    from cgpt_convert.sources.remote.remote_settings import traffic

    return {"requests": traffic.requests, "nbytes": traffic.nbytes, "total": traffic.total}


def matching_rows(
    checkpoint: Checkpoint, rows: list[dict[str, Any]], match: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rows whose names match a glob; BadRequest, as in `convert`, if none does."""
    if not match:
        return rows
    from cgpt_convert.targets.selection import no_match, wanted

    every = (*checkpoint, *checkpoint.exotic)
    if not any(wanted(name, match) for name in every):
        raise no_match(checkpoint.path, every)
    return [row for row in rows if wanted(row["name"], match)]


def add_statistics(
    checkpoint: Checkpoint, rows: list[dict[str, Any]], progress: Progress = no_progress
) -> None:
    """Read the tensors of the rows, and add `stats` to each row."""
    from cgpt_convert.tensors.stats import statistics

    pairs = [(checkpoint[row["name"]], row) for row in rows]
    pairs.sort(key=lambda pair: _place(pair[0]))
    with progress("computing statistics", sum(row["nbytes"] for row in rows)) as advance:
        for tensor, row in pairs:
            row["stats"] = statistics(tensor)
            advance(row["nbytes"])


def _place(tensor: Tensor) -> tuple[str, int, int]:
    """Return the storage position, since compressed storages can only be read forward."""
    storage = tensor.storage
    return storage.source.name, storage.offset, tensor.stored.size(tensor.start)


def check_storages_of(checkpoint: Checkpoint, progress: Progress = no_progress) -> dict[str, Any]:
    """Compare every storage with its recorded checksum; docs/reference/json.md has the keys."""
    from cgpt_convert.tensors.checksums import check_storages, stored

    storages = stored(checkpoint.storages)
    recorded = [s for s in storages if s.crc32 is not None]
    with progress("verifying checksums", sum(s.nbytes for s in recorded)) as advance:
        damaged = {id(storage): storage.key for storage in check_storages(recorded, advance)}
    touched = [
        name
        for name, tensor in checkpoint.items()
        if any(id(part) in damaged for part in stored([tensor.storage]))
    ]
    return {
        "ok": not damaged,
        "storages": len(storages),
        "recorded": len(recorded),
        "damaged": list(damaged.values()),
        "tensors": touched,
    }

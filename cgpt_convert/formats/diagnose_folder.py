"""Error messages for folders without a weight file to open, with the path to pass instead."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator

from cgpt_convert.core.errors import CgptError, Unsupported
from cgpt_convert.core.text import printable
from cgpt_convert.formats.registry import weight_suffixes

_SHOWN = 5
_SUBFOLDERS = 200  # subfolders that are searched
_RANK = re.compile(r"(bf16_)?(zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt")
_OTHERS = (  # files that identify another framework
    ("saved_model.pb", "a TensorFlow SavedModel"),
    ("flax_model.msgpack", "weights of Flax"),
    ("tf_model.h5", "weights of TensorFlow"),
    ("model.onnx", "an ONNX model"),
)


def without_weights(path: str, inside: Collection[str]) -> CgptError:
    """Return the error for the folder at `path`, which contains `inside` and no weight file."""
    special = _distributed(path, inside) or _hub_cache(path, inside)
    if special:
        return special
    below = list(_with_weights(path, inside))
    if below:
        kind = "a diffusers pipeline" if "model_index.json" in inside else "the folder"
        more = f" and {len(below) - _SHOWN:,} more" if len(below) > _SHOWN else ""
        listed = ", ".join(os.path.join(path, name) for name in below[:_SHOWN])
        return Unsupported(
            f"{kind} has its weights in subfolders", where=path, hint=f"name one: {listed}{more}"
        )
    if "model_index.json" in inside:
        hint = f"name one, such as {os.path.join(path, 'unet')}"
        return Unsupported(
            "a diffusers pipeline, whose weights are in subfolders", where=path, hint=hint
        )
    for name, what in _OTHERS:
        if name in inside:
            hint = "look for the PyTorch or safetensors weights of the model"
            return Unsupported(f"{what}, which is not read", where=path, hint=hint)
    if "config.json" in inside:
        return Unsupported(
            "the folder has a config.json and no weights: the download is not complete",
            where=path,
            hint="download the weight files, too (*.safetensors or *.bin)",
        )
    return Unsupported("the folder contains no weights", where=path, hint="name the weight file")


def several(path: str, names: list[str]) -> CgptError | None:
    """Return the error for weight files that belong together; None if one of them can be chosen."""
    if any(map(_RANK.fullmatch, names)):
        return _deepspeed(path, names)
    return None


def _distributed(path: str, inside: Collection[str]) -> CgptError | None:
    tags = [name for name in inside if re.fullmatch(r"global_step\d+", name)]
    if "zero_to_fp32.py" in inside or tags:
        tag = os.path.join(path, max(tags, key=len)) if tags else path
        return _deepspeed(path, _listed(tag) if tags else list(inside), tag)
    return None


def _deepspeed(path: str, files: Collection[str], tag: str = "") -> CgptError:
    folder = path if tag != path and tag else os.path.dirname(path.rstrip(os.sep)) or "."
    whole = sorted(name for name in files if re.fullmatch(r"mp_rank_\d+_model_states\.pt", name))
    hint = f"make one file of it: python {os.path.join(folder, 'zero_to_fp32.py')} {folder} OUTPUT"
    if whole:
        hint += f"; or name {os.path.join(tag or path, whole[0])} for the weights as they trained"
    return Unsupported("a checkpoint of DeepSpeed in parts", where=path, hint=hint)


def _hub_cache(path: str, inside: Collection[str]) -> CgptError | None:
    if {"blobs", "snapshots"} <= set(inside):
        return Unsupported(
            "a model's folder in the Hugging Face cache",
            where=path,
            hint=f"name a snapshot in it: {_snapshot(path)}",
        )
    models = sorted(name for name in inside if name.startswith("models--"))
    if models:
        listed = ", ".join(map(printable, models[:_SHOWN]))
        hint = f"name a snapshot in it, such as {_snapshot(os.path.join(path, models[0]))}"
        return Unsupported(f"a Hugging Face cache with {listed}", where=path, hint=hint)
    return None


def _snapshot(model: str) -> str:
    """Return the snapshot of the main branch, or any, in a model's folder of the cache."""
    revisions = _listed(os.path.join(model, "snapshots"))
    main = _first_line(os.path.join(model, "refs", "main"))
    named = main if main in revisions else next(iter(revisions), "REVISION")
    return os.path.join(model, "snapshots", named)


def _with_weights(path: str, inside: Collection[str]) -> Iterator[str]:
    """Yield the subfolders that contain weights or an unpacked archive."""
    for name in sorted(inside)[:_SUBFOLDERS]:
        files = _listed(os.path.join(path, name))
        if any(f.endswith(weight_suffixes()) or f == "data.pkl" for f in files):
            yield name


def _listed(folder: str) -> list[str]:
    """Return the names in a local folder; an empty list if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline(200).strip()
    except (OSError, UnicodeDecodeError):
        return ""

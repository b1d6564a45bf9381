"""Error messages for folders without a weight file to open, with the path to pass instead."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Sequence

from cgpt_convert.core.errors import CgptError, Unsupported
from cgpt_convert.core.limits import INDEX_BYTES
from cgpt_convert.core.strict_json import check_count
from cgpt_convert.core.text import counted, printable, quoted, quoted_list
from cgpt_convert.formats.registry import weight_suffixes
from cgpt_convert.formats.torch.torch_files import PARAMETERS, is_part
from cgpt_convert.sources.paths import is_url, join

_SHOWN = 5
_SUBFOLDERS = 200  # subfolders that are searched
_RANK = re.compile(r"(bf16_)?(zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt")
_PIPELINE = "model_index.json"  # of diffusers
_OTHERS = (  # files that identify another framework
    ("saved_model.pb", "a TensorFlow SavedModel"),
    ("flax_model.msgpack", "Flax weights"),
    ("tf_model.h5", "TensorFlow weights"),
    ("model.onnx", "an ONNX model"),
)


def without_weights(path: str, inside: Collection[str]) -> CgptError:
    """Return the error for the folder at `path`, which contains `inside` and no weight file."""
    special = _several_tags(path, inside) or _hub_cache(path, inside)
    if special:
        return special
    if _PIPELINE in inside:
        return _pipeline(path, inside)
    below = list(_with_weights(path, inside))
    if below:
        message = "the folder has weights only in subfolders"
        return Unsupported(message, where=path, hint=_one_of(path, below))
    for name, what in _OTHERS:
        if name in inside:
            hint = "look for PyTorch or safetensors weights of the same model"
            message = f"the folder contains {what}, which this program does not support"
            return Unsupported(message, where=path, hint=hint)
    if "config.json" in inside:
        return Unsupported(
            "the folder contains config.json but no weights: the download is incomplete",
            where=path,
            hint="download the weight files too (*.safetensors or *.bin)",
        )
    return Unsupported("the folder contains no weights", where=path, hint="pass the weight file")


def _one_of(path: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    listed = ", ".join(os.path.join(path, name) for name in names[:_SHOWN])
    return f"pass one of them: {listed}{more}"


def _pipeline(path: str, inside: Collection[str]) -> CgptError:
    """Return the error for a diffusers pipeline, with its components, their files and sizes."""
    message = "the folder is a diffusers pipeline, which has its weights in subfolders"
    if is_url(path):  # its subfolders are not listed
        hint = f"pass one of them, such as {join(path, 'unet')}"
        return Unsupported(message, where=path, hint=hint)
    classes = _components(path)
    names = sorted(inside)[:_SUBFOLDERS]
    weights = {name: _weight_files(os.path.join(path, name)) for name in names}
    below = [name for name, files in weights.items() if files]
    rows = []
    for name in sorted({*below, *classes})[:_SUBFOLDERS]:
        shown = f"{quoted(name)} ({printable(classes[name])})" if name in classes else quoted(name)
        files = weights.get(name) or []
        sizes = [f"{quoted(file)} ({counted(size, 'byte')})" for file, size in files[:_SHOWN]]
        sizes += [f"{len(files) - _SHOWN:,} more"] if len(files) > _SHOWN else []
        no_files = "no weights" if name in inside else "the folder is missing"
        rows.append(f"\n  {shown}: {', '.join(sizes) or no_files}")
    hint = _one_of(path, below) if below else "download the weight files too"
    return Unsupported(f"{message}:{''.join(rows)}" if rows else message, where=path, hint=hint)


def _components(path: str) -> dict[str, str]:
    """Return the class of each component of a pipeline; none if its index cannot be read."""
    try:
        with open(os.path.join(path, _PIPELINE), "rb") as file:
            data = file.read(INDEX_BYTES)
        check_count(data, path)
        index = json.loads(data)
    except (OSError, ValueError, RecursionError, CgptError):
        return {}
    pairs = index.items() if isinstance(index, dict) else ()
    return {
        name: value[1]
        for name, value in pairs
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)  # noqa: PLR2004
    }


def _weight_files(folder: str) -> list[tuple[str, int]]:
    """Return the names and sizes of the weight files in a local folder."""
    files = []
    for name in _listed(folder):
        path = os.path.join(folder, name)
        if name.endswith(weight_suffixes()) and os.path.isfile(path):
            files.append((name, os.path.getsize(path)))
    return files


def several(path: str, names: list[str]) -> CgptError | None:
    """Return the error for weight files that belong together; None if one of them can be chosen."""
    if all(map(is_part, names)):
        return Unsupported(
            f"the folder has parts of a LLaMA model, without {PARAMETERS}, which says its sizes",
            where=path,
            hint=f"download {PARAMETERS} of the same model to the folder",
        )
    if any(map(_RANK.fullmatch, names)):
        whole = sorted(name for name in names if name.startswith("mp_rank_"))
        alone = f"; or pass {os.path.join(path, whole[0])} for weights in training precision"
        return Unsupported(
            "the folder has a part of a DeepSpeed checkpoint, without the optimizer's states",
            where=path,
            hint="copy the files *_optim_states.pt too" + (alone if whole else ""),
        )
    return None


def _several_tags(path: str, inside: Collection[str]) -> CgptError | None:
    tags = [name for name in inside if re.fullmatch(r"global_step\d+", name)]
    if not tags:
        return None
    last = os.path.join(path, max(tags, key=lambda tag: (len(tag), tag)))
    message = "the folder has checkpoints of DeepSpeed, and no file latest that names one"
    return Unsupported(message, where=path, hint=f"pass one of them: {last}")


def _hub_cache(path: str, inside: Collection[str]) -> CgptError | None:
    if {"blobs", "snapshots"} <= set(inside):
        return Unsupported(
            "the folder is a model in the Hugging Face cache",
            where=path,
            hint=f"pass a snapshot in it: {_snapshot(path)}",
        )
    models = sorted(name for name in inside if name.startswith("models--"))
    if models:
        listed = quoted_list(models, _SHOWN)
        hint = f"pass a snapshot in it, such as {_snapshot(os.path.join(path, models[0]))}"
        message = f"the folder is a Hugging Face cache with {listed}"
        return Unsupported(message, where=path, hint=hint)
    return None


def hub_snapshot(path: str, inside: Collection[str]) -> str | None:
    """Return the snapshot that is meant by a folder of the Hugging Face cache, or None.

    It is that of the main branch, or the only one, of a model, or of the only model in the cache.
    """
    models = [name for name in inside if name.startswith("models--")]
    if len(models) == 1 and "snapshots" not in inside:
        path = os.path.join(path, models[0])
        inside = _listed(path)
    if not {"blobs", "snapshots"} <= set(inside):
        return None
    revisions = _listed(os.path.join(path, "snapshots"))
    main = _first_line(os.path.join(path, "refs", "main"))
    known = [name for name in revisions if name == main or len(revisions) == 1]
    return os.path.join(path, "snapshots", known[0]) if known else None


def _snapshot(model: str) -> str:
    """Return a snapshot in the cache folder of a model, preferably that of the main branch."""
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

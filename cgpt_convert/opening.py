"""A path -> Checkpoint: what lies there is told by its content, never by its suffix."""

from __future__ import annotations

import os

from cgpt_convert import findings, formats
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.containers import shards
from cgpt_convert.containers.sniff import Kind, sniff
from cgpt_convert.errors import BadRequest
from cgpt_convert.findings import Finding
from cgpt_convert.source import LocalFile, unreadable

_INDEX = ".index.json"
# what a model folder holds its weights as, Hugging Face's names first
_IN_FOLDERS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".gguf")


def open_checkpoint(path: str | os.PathLike[str], mapping: str | None = None) -> Checkpoint:
    """What the file or folder at `path` holds, its tensors unread.

    `mapping` names a model whose ready name -> file mapping tells what a folder of bare numbered
    files is. Raises a CgptError that says what is wrong and what to do next.
    """
    path = os.fspath(path)
    if mapping is not None:
        return _with_mapping(path, mapping)
    if os.path.isdir(path):
        return _open_folder(path)
    if path.endswith(_INDEX):
        return shards.read_index(path, _open_file)
    checkpoint = _open_file(path)
    index = shards.lone_shard(path)
    if index:
        detail = f"{os.path.basename(path)}; {index} or the folder opens all"
        checkpoint.findings.append(Finding(findings.LONE_SHARD, detail))
    return checkpoint


def _open_file(path: str) -> Checkpoint:
    """What one file holds, by the reader of its kind; the readers are imported when needed."""
    source = LocalFile(path)
    kind = sniff(source)
    if kind is Kind.TORCH_ZIP:
        from cgpt_convert.containers import torchzip

        return torchzip.read(source)
    if kind is Kind.LEGACY:
        from cgpt_convert.containers import legacy

        return legacy.read(source)
    if kind is Kind.TORCH_TAR:
        from cgpt_convert.containers import torchtar

        return torchtar.read(source)
    if kind is Kind.SAFETENSORS:
        return formats.by_name("safetensors").read(path)
    if kind is Kind.NPZ:
        return formats.by_name("npz").read(path)
    if kind is Kind.GGUF:
        return formats.by_name("gguf").read(path)
    from cgpt_convert.containers.refuse import refuse

    raise refuse(kind, source)


def _open_folder(path: str) -> Checkpoint:
    """The one checkpoint of a folder; BadRequest, listing them, if there are several."""
    try:
        inside = set(os.listdir(path))
    except OSError as error:
        raise unreadable(error, path) from error
    if "mapping.json" in inside:
        return formats.by_name("parameters").read(path)
    found = [name for name in _IN_FOLDERS if name in inside]
    found = found or sorted(name for name in inside if name.endswith(_INDEX))
    found = found or sorted(
        name for name in inside if name.endswith(_SUFFIXES) and name != "training_args.bin"
    )
    arrays = not found and any(name.endswith(".npy") for name in inside)
    if arrays or "tensors.json" in inside:
        return formats.by_name("npy").read(path)
    if not found:
        raise BadRequest("the folder holds no weights", where=path)
    if len(found) > 1:
        raise BadRequest(
            f"the folder holds several weight files: {', '.join(found)}",
            where=path,
            hint="name the one that is meant",
        )
    return open_checkpoint(os.path.join(path, found[0]))


def _with_mapping(path: str, mapping: str) -> Checkpoint:
    from cgpt_convert.formats import parameters
    from cgpt_convert.mapping.identity import storage_mapping

    if not os.path.isdir(path):
        raise BadRequest("--mapping is for a folder of numbered files", where=path)
    return parameters.read_mapped(path, storage_mapping(mapping))

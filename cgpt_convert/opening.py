"""A path -> Checkpoint: what lies there is told by its content, never by its suffix."""

from __future__ import annotations

import os

from cgpt_convert import findings, limits, shards
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.errors import BadRequest
from cgpt_convert.findings import Finding
from cgpt_convert.formats import parameters
from cgpt_convert.source import LocalFile

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
    from cgpt_convert import torchzip
    from cgpt_convert.formats import npz, safetensors

    source = LocalFile(path)
    head = bytearray(min(4, source.nbytes))
    source.readinto(0, memoryview(head))
    if head == b"PK\3\4":
        return torchzip.read(source)
    if head[:2] == b"\x80\x02":
        from cgpt_convert import legacy

        return legacy.read(source)
    return safetensors.read(path)


def _open_folder(path: str) -> Checkpoint:
    """The one checkpoint of a folder; BadRequest, listing them, if there are several."""
    inside = set(os.listdir(path))
    if parameters.MAPPING in inside:
        return parameters.read(path)
    found = [name for name in _IN_FOLDERS if name in inside]
    found = found or sorted(name for name in inside if name.endswith(_INDEX))
    found = found or sorted(
        name for name in inside if name.endswith(_SUFFIXES) and name != "training_args.bin"
    )
    if "tensors.json" in inside or any(name.endswith(".npy") for name in inside):
        from cgpt_convert.formats import npy

        return npy.read(path)
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
    from cgpt_convert.mapping import storage_mapping

    if not os.path.isdir(path):
        raise BadRequest("--mapping is for a folder of numbered files", where=path)
    return parameters.read_mapped(path, storage_mapping(mapping))

"""The raw files that demo-gpt-java reads: the tensor in each file and its layout.

The rules are those of `ParameterReader.java` and `QueryKeyValueParameters.java`. A file is exactly
one tensor. Weights are stored as (out, in), or all as (in, out) if `weights.transposed` is true.
Query, key and value may be one matrix (`merged.qkv`) only if it is (3*out, in).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.raw import writer
from cgpt_convert.plan import AvailableDigests, DeferredPart, FilePlan, Part
from cgpt_convert.tensors.tensor import Tensor, replace

_MERGED = "query.key.value"


class RawFiles(NamedTuple):
    """The planned files. `files` maps the program's tensor names to paths in the folder."""

    plans: list[FilePlan]
    files: dict[str, str]
    copies: dict[str, Tensor]  # path -> tensor, for files with a second copy of a tensor
    transposed: bool  # the program's term for (in, out)


def plan(checkpoint: Checkpoint, recognised: Recognised, tensors: Mapping[str, Tensor]) -> RawFiles:
    """Plan every storage as in the archive, and the further files that the program needs.

    `tensors` has the tensors named by `recognised`. A tensor that does not fill a storage in the
    program's layout gets a file of its own under the program's standard name.
    """
    transposed = recognised.conv1d == "contiguous"
    views = dict(_views(recognised, tensors, transposed=transposed))
    files = {key: f"{key}.dat" for key, view in views.items() if not _fills_storage(view)}
    copies = {file: views[key] for key, file in files.items()}
    everything = list(checkpoint.values()), list(checkpoint.exotic.values())
    plans = writer.plan_storages(checkpoint, *everything, copies)
    raw = [each for each in plans if each.path not in copies]
    stored = {id(p.storage): each.path for each in raw for p in each.parts if isinstance(p, Tensor)}
    files = {key: files.get(key) or stored[id(view.storage)] for key, view in views.items()}
    return RawFiles(plans, files, copies, transposed)


def _views(
    recognised: Recognised, tensors: Mapping[str, Tensor], *, transposed: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield the program's name of each tensor, and the tensor in the layout of its file."""
    for name, key in recognised.names("raw").items():
        tensor = tensors[name]
        if transposed and _MERGED in key:
            for number, part in enumerate(_MERGED.split(".")):
                yield key.replace(_MERGED, part), _third(tensor, number)
        elif recognised.places[name].rule.conv1d and not transposed:
            yield key, tensor.transposed()
        else:
            yield key, tensor


def _third(tensor: Tensor, number: int) -> Tensor:
    """Return one of three equal parts of the last dimension."""
    width = tensor.shape[-1] // 3
    start = tensor.start + number * width * tensor.strides[-1]
    return replace(tensor, shape=(*tensor.shape[:-1], width), start=start)


def _fills_storage(tensor: Tensor) -> bool:
    """Return whether the storage's bytes are exactly the tensor's, in the required layout."""
    extent = tensor.extent()
    return extent is not None and (extent.start, extent.nbytes) == (0, tensor.storage.nbytes)


def moved(plans: list[FilePlan], folder: str) -> list[FilePlan]:
    """Return the same files inside `folder`, which ends with a slash."""

    def part(each: Part) -> Part:
        return _inside(each, folder) if isinstance(each, DeferredPart) else each

    return [
        dataclasses.replace(each, path=folder + each.path, parts=tuple(map(part, each.parts)))
        for each in plans
    ]


def _inside(late: DeferredPart, folder: str) -> DeferredPart:
    """Return the late part with the folder removed from the paths that it looks up."""

    def make(digests: AvailableDigests) -> bytes:
        files = {path.removeprefix(folder): each for path, each in digests.files.items()}
        return late.make(digests._replace(files=files))

    return late._replace(make=make)

"""Checks before writing, and their errors: paths, existing outputs, free space, inputs.

An output never replaces its own input, under any name or link.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest, CannotWrite, CgptError, cannot_write
from cgpt_convert.core.limits import INDEX_BYTES
from cgpt_convert.core.text import printable
from cgpt_convert.plan import DeferredPart, FilePlan
from cgpt_convert.sources.local import LocalFile, Source, as_local, origins, read
from cgpt_convert.sources.paths import is_url
from cgpt_convert.tensors.tensor import Tensor
from cgpt_convert.writing.temp_files import is_temporary_of

# A folder is replaced only if one of these files, which this program writes, lists its content
_PARAMETERS = "parameters/mapping.json"
SIDECARS = ("mapping.json", "tensors.json", "cgpt-convert.json")


def components(path: str, most: int | None = None) -> list[str]:
    """Split a planned path, which comes from names in a file.

    Raises CannotWrite if the path leaves the output.
    """
    parts = path.split("/")
    if any(p in ("", ".", "..") or "\0" in p for p in parts) or (most and len(parts) > most):
        raise CannotWrite("the path is not inside the output folder", where=printable(path))
    return parts


def not_ours(folder: str) -> str | None:
    """Return a file in `folder` that no sidecar of this program lists, or None."""
    listed = set(SIDECARS)
    for name in SIDECARS:
        listed |= set(_files(os.path.join(folder, name)))
    inner = set(_files(os.path.join(folder, *_PARAMETERS.split("/"))))
    if inner:  # written by `extract --properties`
        listed |= {"model.properties", _PARAMETERS, *(f"parameters/{name}" for name in inner)}
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*files, *links):
            path = os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
            if path not in listed:
                return path
    return None


def _files(sidecar: str) -> list[str]:
    """Return the files that a sidecar lists; empty if it is absent or not JSON."""
    try:
        file = LocalFile(sidecar)
        return list(_listed([json.loads(read(file, 0, min(file.nbytes, INDEX_BYTES)))]))
    except (CgptError, ValueError, RecursionError):
        return []


def _listed(value: dict[str, Any] | list[Any]) -> Iterator[str]:
    """Yield every string under the key "file" in a sidecar."""
    if isinstance(value, dict) and isinstance(value.get("file"), str):
        yield value["file"]
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from _listed(inner)


def check_space(folder: str, nbytes: int) -> None:
    """Raise CannotWrite if the file system has less than `nbytes` of free space."""
    if not hasattr(os, "statvfs"):
        return
    status = os.statvfs(folder or ".")
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and free < nbytes:
        raise CannotWrite(
            f"not enough disk space: {nbytes:,} bytes are needed, {free:,} are free",
            where=folder or ".",
            hint="free disk space, or write to another file system",
        )


RESERVED = 16 << 20  # bytes; preallocating smaller files is not worth a call
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def reserve(temporary: str, nbytes: int, final: str) -> None:
    """Preallocate the blocks of the new file `temporary`. CannotWrite if there are too few.

    Other processes then cannot fill the disk during a long write. If the file system does not
    support it, C libraries write one byte to every block instead, except through a descriptor that
    cannot be read (posix_fallocate(3), EBADF); it is therefore opened write-only.
    """
    if nbytes < RESERVED or not hasattr(os, "posix_fallocate"):
        return
    try:
        descriptor = os.open(temporary, os.O_WRONLY)
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        finally:
            os.close(descriptor)
    except OSError as error:  # other errors appear when writing
        if error.errno in _FULL:
            raise cannot(error, final) from error


def is_present(path: str) -> bool:
    """Return whether the path exists. CannotWrite if it cannot, e.g. if the name is too long."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot(error, path) from error
    return True


def exists(path: str) -> CannotWrite:
    """Return the error for an output that already exists."""
    return CannotWrite("already exists", where=path, hint="pass --overwrite to replace it")


def cannot(error: OSError, path: str) -> CannotWrite:
    """Convert an OSError about the output at `path` into CannotWrite."""
    if isinstance(error, FileExistsError) or error.errno == errno.ENOTEMPTY:
        return exists(path)
    return cannot_write(error, path)


def inputs_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the paths that the checkpoint is read from: index or folder, and files."""
    return (checkpoint.path, *(file.name for each in checkpoint.sources for file in origins(each)))


def check_apart(
    plans: Iterable[FilePlan], inputs: Iterable[str], outputs: Sequence[str], *, folder: bool
) -> None:
    """Raise BadRequest if writing `outputs` would replace a file that is read.

    These are the files of the planned tensors, the shard index that lists them, and the paths
    `inputs`. A folder replaces everything in it.
    """
    sources = {id(source): source for source in _sources(plans)}.values()
    local = [source for source in map(as_local, sources) if source]
    paths = {*inputs, *(source.name for source in sources if is_url(source.name))}
    paths |= {path for source in local for path in (source.name, source.index) if path}
    for output in outputs:
        if is_url(output):
            _check_names(paths, output)
            continue
        _check_temporary(paths, output)
        try:
            status = os.stat(output)
        except OSError:  # no such file
            continue
        same = any(source.same_file(status) for source in local)
        if same or any(_is_same(path, output, status, folder=folder) for path in paths):
            raise _same(output)


def _sources(plans: Iterable[FilePlan]) -> Iterator[Source]:
    for plan in plans:
        for part in plan.parts:
            tensors = part.tensors if isinstance(part, DeferredPart) else (part,)
            for tensor in tensors:
                if isinstance(tensor, Tensor):
                    yield from origins(tensor.storage.source)


def _is_same(path: str, output: str, status: os.stat_result, *, folder: bool) -> bool:
    """Return whether a local input is the output, or inside it."""
    if is_url(path):
        return False
    try:
        if os.path.samestat(os.stat(path), status):
            return True
    except OSError:  # no longer exists
        return False
    if not folder:
        return False
    real = os.path.realpath(output)
    return any(
        os.path.commonpath([real, inside]) == real
        for inside in (os.path.realpath(path), os.path.abspath(path))
    )


def _check_temporary(paths: Iterable[str], output: str) -> None:
    """Raise BadRequest for an input with the name of a temporary file of the output.

    Such files are leftovers of a killed run, and the next run of that output removes them.
    """
    folder, name = os.path.split(os.path.abspath(output))
    for path in paths:
        if is_url(path):
            continue
        relative = os.path.relpath(os.path.abspath(path), folder)
        if is_temporary_of(relative.split(os.sep)[0], name):
            raise BadRequest(
                "the input has the name of a temporary file of this output and would be removed",
                where=path,
                hint="rename the input, or choose another output name",
            )


def _check_names(paths: Iterable[str], output: str) -> None:
    """Compare a URL with the inputs by name; stores have no links."""
    prefix = f"{output.rstrip('/')}/"
    if any(f"{name.rstrip('/')}/".startswith(prefix) for name in paths):
        raise _same(output)


def _same(output: str) -> BadRequest:
    return BadRequest(
        "the output would replace the input", where=output, hint="choose another output name"
    )

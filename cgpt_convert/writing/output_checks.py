"""Check output paths, existing outputs and free space, and create the errors for them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from typing import Any

from cgpt_convert.core.errors import CannotWrite, CgptError
from cgpt_convert.core.limits import INDEX_BYTES
from cgpt_convert.core.text import printable
from cgpt_convert.sources.local import LocalFile, read

# A folder is replaced only if one of these files, which this program writes, lists its content
_PARAMETERS = "parameters/mapping.json"
SIDECARS = ("mapping.json", "tensors.json", "cgpt-convert.json")


def components(path: str, most: int | None = None) -> list[str]:
    """Split a planned path, which comes from names in a file.

    Raises CannotWrite if the path leaves the output.
    """
    parts = path.split("/")
    if any(p in ("", ".", "..") or "\0" in p for p in parts) or (most and len(parts) > most):
        raise CannotWrite("not a path inside the output", where=printable(path))
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
        raise CannotWrite(f"{nbytes:,} bytes are needed and {free:,} are free", where=folder or ".")


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


def lies(path: str) -> bool:
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
    return CannotWrite("exists already", where=path, hint="--overwrite replaces it")


def cannot(error: OSError, path: str) -> CannotWrite:
    """Convert an OSError about the output at `path` into CannotWrite."""
    if isinstance(error, FileExistsError) or error.errno == errno.ENOTEMPTY:
        return exists(path)
    return CannotWrite(os.strerror(error.errno or 0), where=path)
